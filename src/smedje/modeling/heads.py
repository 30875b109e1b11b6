"""q | k | v of a stream's rows, turned and laid out as attention's products want them; and gradients laid back.

Knows what must lie side by side in memory: the rows of a key head, and for each row the query heads of that key head;
and rotary turning on the way there and back, in few passes over memory. What is laid out is fp32 or wider; what comes
in and goes back has the stream's type. Refuses to know segments, softmax and where angles come from.

Letters: T rows, N heads of q, k and v together, Hk key heads, G query heads a key head, D values a head, R turned ones.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class HeadSizes(NamedTuple):
    """How many heads ask, how many are asked, and values a head."""

    queries: int
    keys: int
    size: int


class Turn(NamedTuple):
    """What turns heads [Hk, T, n, D]: cos [T, n, D], one where a value stays as it is, and sin [T, n, R / 2]."""

    cos: Tensor
    sin: Tensor


class Turns(NamedTuple):
    """What turns a stream's queries (and scales them) and its keys."""

    queries: Turn
    keys: Turn


def turns_of(cos: Tensor, sin: Tensor, sizes: HeadSizes, *, scale: float) -> Turns:
    """cos and sin [T, 1, R / 2] written out for whole heads, so that they meet heads in long loops."""
    still = cos.new_ones(cos.shape[0], 1, sizes.size - 2 * cos.shape[-1])
    whole = torch.cat((cos, cos, still), -1)
    group = sizes.queries // sizes.keys

    def written_out(factor: float, heads: int) -> Turn:
        return Turn(*((factor * part).expand(-1, heads, -1).contiguous() for part in (whole, sin)))

    return Turns(written_out(scale, group), written_out(1.0, 1))


def laid_out(qkv: Tensor, turns: Turns, sizes: HeadSizes) -> tuple[Tensor, Tensor, Tensor]:
    """q | k | v side by side [T, N * D] as q [Hk, T, G, D], turned and scaled, k [Hk, T, D], turned, and v."""
    wide = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = _parts(qkv, sizes)
    q, k = (
        _turned(widened(part, wide), turn, torch.empty(part.shape, dtype=wide, device=part.device))
        for part, turn in zip((q, k), turns, strict=True)
    )
    return q, k.squeeze(2), widened(v, wide).contiguous().squeeze(2)


def laid_back(gradients: tuple[Tensor, Tensor, Tensor], turns: Turns, sizes: HeadSizes, dtype: torch.dtype) -> Tensor:
    """The gradient of q | k | v [T, N * D], in `dtype`, from that of what they were laid out as."""
    d_q, d_k, d_v = gradients[0], gradients[1].unsqueeze(2), gradients[2].unsqueeze(2)
    d_qkv = d_q.new_empty(d_q.shape[1], (sizes.queries + 2 * sizes.keys) * sizes.size, dtype=dtype)
    *places, v_place = _parts(d_qkv, sizes)
    for place, part, turn in zip(places, (d_q, d_k), turns, strict=True):
        if dtype == part.dtype:
            _turned(part, turn, place, back=True)
        else:
            place.copy_(_turned(part, turn, torch.empty_like(part), back=True))
    v_place.copy_(d_v)
    return d_qkv


def grouped(rows: Tensor, sizes: HeadSizes) -> Tensor:
    """[T, Hk * G * D] as [Hk, T, G, D]."""
    return rows.view(rows.shape[0], sizes.keys, -1, sizes.size).transpose(0, 1)


def widened(heads: Tensor, dtype: torch.dtype) -> Tensor:
    """Heads in `dtype`, laid out anew where that is another."""
    return heads if heads.dtype == dtype else heads.to(dtype, memory_format=torch.contiguous_format)


def _parts(qkv: Tensor, sizes: HeadSizes) -> tuple[Tensor, Tensor, Tensor]:
    """Views of q, k, v, as [Hk, T, G, D] and [Hk, T, 1, D]."""
    q, k, v = torch.split(qkv, [heads * sizes.size for heads in (sizes.queries, sizes.keys, sizes.keys)], dim=1)
    return grouped(q, sizes), grouped(k, sizes), grouped(v, sizes)


def _turned(heads: Tensor, turn: Turn, out: Tensor, *, back: bool = False) -> Tensor:
    """Heads [Hk, T, n, D] turned into `out`, or the opposite way."""
    half, sign = turn.sin.shape[-1], -1 if back else 1
    torch.mul(heads, turn.cos, out=out)
    out[..., :half].addcmul_(heads[..., half : 2 * half], turn.sin, value=-sign)
    out[..., half : 2 * half].addcmul_(heads[..., :half], turn.sin, value=sign)
    return out
