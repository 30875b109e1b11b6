"""The low-rank product itself, with its gradient written by hand: y += scale * B A x for all parts of a fused linear.

Knows how the parts' factors are laid beside each other; refuses to know modules, adapters' names and files.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from smedje.modeling.products import product


def add_low_rank(
    y: Tensor, x: Tensor, scale: float, spans: Sequence[tuple[int, int]], downs: Sequence[Tensor], ups: Sequence[Tensor]
) -> Tensor:
    """y [T, out] with scale * B A x written into it: x [T, in], and for each part its rows of y, A [rank, in], B."""
    added: Tensor = _AddLowRank.apply(y, x, scale, tuple(spans), *downs, *ups)  # type: ignore[no-untyped-call]
    return added


class _AddLowRank(torch.autograd.Function):
    """y += scale * (x A^T) B^T in place, for all parts of a site at once; saves x and the rank-wide x A^T alone.

    The parts' A are stacked [n * rank, in] and their B stand in their own rows and columns of one [out, n * rank]: n
    times the arithmetic of the thin products, in a quarter of the calls and without gaps between rows.
    y comes first because autograd takes the first input for the one written to where y is a view.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, scale: float, spans: tuple[tuple[int, int], ...], *factors: Tensor
    ) -> Tensor:
        narrow = product(x, _stacked(factors[: len(spans)], x.dtype))
        y.add_(product(narrow, spread(factors[len(spans) :], spans, y)), alpha=scale)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, narrow, *factors)
        ctx.scale, ctx.spans = scale, spans
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, spans = grads[0], ctx.spans
        x, narrow, *factors = ctx.saved_tensors
        rank = factors[0].shape[0]
        d_narrow = product(dy, spread(factors[len(spans) :], spans, dy).T).mul_(ctx.scale)
        d_spread = product(narrow.T, dy.T).mul_(ctx.scale)
        d_ups = [
            d_spread[index * rank : (index + 1) * rank, start:stop].T.to(factors[0].dtype).contiguous()
            for index, (start, stop) in enumerate(spans)
        ]
        d_downs = torch.split(product(d_narrow.T, x.T).to(factors[0].dtype), rank)
        dx = product(d_narrow, _stacked(factors[: len(spans)], x.dtype).T) if ctx.needs_input_grad[1] else None
        return dy, dx, None, None, *d_downs, *d_ups


def _stacked(downs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return (downs[0] if len(downs) == 1 else torch.cat(list(downs))).to(dtype)


def spread(ups: Sequence[Tensor], spans: Sequence[tuple[int, int]], y: Tensor) -> Tensor:
    """The parts' B in their own rows and columns of one [out, n * rank], in y's type; zero elsewhere."""
    if len(ups) == 1 and spans[0] == (0, y.shape[1]):
        return ups[0].to(y.dtype)
    rank = ups[0].shape[1]
    spread = y.new_zeros(y.shape[1], len(ups) * rank)
    for index, ((start, stop), up) in enumerate(zip(spans, ups, strict=True)):
        spread[start:stop, index * rank : (index + 1) * rank] = up
    return spread
