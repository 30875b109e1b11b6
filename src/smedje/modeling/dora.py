"""DoRA (Liu et al. 2024, arXiv:2402.09353): a magnitude for each output row beside a low-rank change of direction.

y = gain * (W x + scale B A x) + bias, with gain = magnitude / |W + scale B A| row by row. Knows how gains are had from
a decoder's weights, packed or not; as in the paper (4.3) and in PEFT no gradient goes through the norm. Refuses to
know modules, files and batches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from smedje.modeling.config import Slot
from smedje.modeling.products import product
from smedje.modeling.transformer import CausalDecoder


def magnitude_name(slot: Slot) -> str:
    """PEFT's name of a slot's magnitudes [out], as saved."""
    return f"base_model.model.{slot.name}.lora_magnitude_vector"


@torch.no_grad()
def row_norms(decoder: CausalDecoder, slot: Slot, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """|W + scale B A| of each row of a slot's weight: a [rank, in], b [out, rank] -> fp32 [out].

    From |W|^2, W A^T and A A^T, so that no matrix of the weight's size is formed and a packed weight will do.
    """
    weight = decoder.weight(slot.site)
    a, b = a.to(weight.device, torch.float32), b.to(weight.device, torch.float32)
    along = product(a.to(weight.dtype), weight)[:, slot.start : slot.stop].float()
    squares = decoder.row_squares(slot.site)[slot.start : slot.stop]
    squares = squares + 2 * scale * (b * along.T).sum(1) + scale * scale * ((b @ (a @ a.T)) * b).sum(1)
    return squares.clamp_min(torch.finfo(torch.float32).tiny).sqrt()


def site_gains(gains: Sequence[tuple[Slot, Tensor]], width: int) -> Tensor:
    """The gains of a site's slots, each in its own rows; 1 in the others: [width]."""
    whole = torch.ones(width, dtype=gains[0][1].dtype, device=gains[0][1].device)
    for slot, gain in gains:
        whole[slot.start : slot.stop] = gain
    return whole
