"""NEFTune (Jain et al. 2023, arXiv:2310.05914): even noise on the embedded tokens while training.

Each document of L tokens gets noise from -m to m, m = alpha / sqrt(L * H). The draw is a function of seed, step and row
alone: not of what is computed together, and the same after a resume. Refuses to know losses and optimizers.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from smedje.modeling.config import DecoderShape, Site, Slot
from smedje.modeling.transformer import Attend, CausalDecoder, LowRank


def embedding_noise(lengths: Sequence[int], seeds: Sequence[int], hidden: int, alpha: float) -> Tensor:
    """Noise for documents of these lengths laid end to end: fp32 [T, H], on the CPU. seeds: one for each document."""
    parts = []
    for length, seed in zip(lengths, seeds, strict=True):
        most = alpha / math.sqrt(length * hidden)
        generator = torch.Generator().manual_seed(seed)
        parts.append(torch.empty(length, hidden).uniform_(-most, most, generator=generator))
    return torch.cat(parts)


class Noisy:
    """A CausalDecoder whose forward pass adds noise [T, H] to the embedded tokens; the rest is the decoder's own."""

    def __init__(self, decoder: CausalDecoder, noise: Tensor) -> None:
        self._decoder = decoder
        self._noise = noise
        self.shape: DecoderShape = decoder.shape
        self.slots: tuple[Slot, ...] = decoder.slots
        self.rows, self.reentrant = decoder.rows, decoder.reentrant

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attend,
        lora: LowRank | None = None,
        *,
        noise: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """As the decoder's, with the noise."""
        assert noise is None, "the noise is here already"
        return self._decoder.forward(tokens, positions, attend, lora, noise=self._noise, wanted=wanted)

    def head(self, hidden: Tensor) -> Tensor:
        """As the decoder's."""
        return self._decoder.head(hidden)

    def weight(self, site: Site) -> Tensor:
        """As the decoder's."""
        return self._decoder.weight(site)

    def bias(self, site: Site) -> Tensor | None:
        """As the decoder's."""
        return self._decoder.bias(site)

    def row_squares(self, site: Site) -> Tensor:
        """As the decoder's."""
        return self._decoder.row_squares(site)

    def pack(self) -> None:
        """As the decoder's."""
        self._decoder.pack()

    def export_state(self) -> Mapping[str, Tensor]:
        """As the decoder's."""
        return self._decoder.export_state()
