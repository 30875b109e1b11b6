"""The low-rank product itself, with its gradient written by hand: y += scale * B A x for all parts of a fused linear.

Knows how the parts' factors are laid beside each other; refuses to know modules, adapters' names and files.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smedje.modeling.products import product

Spans = tuple[tuple[int, int], ...]


class Factors(NamedTuple):
    """An adapter's part in one fused linear: for each of its parts the rows of y, A [rank, in] and B [rows, rank].

    No parts: the linear is not adapted.
    """

    scale: float
    spans: Spans
    downs: tuple[Tensor, ...]
    ups: tuple[Tensor, ...]


def add_low_rank(
    y: Tensor, x: Tensor, scale: float, spans: Sequence[tuple[int, int]], downs: Sequence[Tensor], ups: Sequence[Tensor]
) -> Tensor:
    """y [T, out] with scale * B A x written into it: x [T, in], and for each part its rows of y, A [rank, in], B."""
    added: Tensor = _AddLowRank.apply(y, x, scale, tuple(spans), *downs, *ups)  # type: ignore[no-untyped-call]
    return added


def narrowed(x: Tensor, factors: Factors) -> Tensor:
    """x A^T [T, n * rank], which the gradient needs too. Not differentiable.

    The parts' A are stacked [n * rank, in] and their B stand in their own rows and columns of one [out, n * rank]: n
    times the arithmetic of the thin products, in a quarter of the calls and without gaps between rows.
    """
    return product(x, _stacked(factors.downs, x.dtype))


def widened(narrow: Tensor, factors: Factors, width: int) -> Tensor:
    """scale * B of what was narrowed: [T, width]. Not differentiable."""
    return product(narrow, spread(factors.ups, factors.spans, narrow.new_empty(0, width)) * factors.scale)


def narrow_gradient(dy: Tensor, factors: Factors) -> Tensor:
    """The gradient of x A^T: [T, n * rank]."""
    return product(dy, (spread(factors.ups, factors.spans, dy) * factors.scale).T)


def rows_gradient(d_narrow: Tensor, factors: Factors) -> Tensor:
    """The gradient of x by the low-rank product alone: [T, in]."""
    return product(d_narrow, _stacked(factors.downs, d_narrow.dtype).T)


def factor_gradients(dy: Tensor, d_narrow: Tensor, x: Tensor, narrow: Tensor, factors: Factors) -> list[Tensor]:
    """The gradients of all A, then of all B, in their own type."""
    rank, dtype = factors.downs[0].shape[0], factors.downs[0].dtype
    d_spread = product(narrow.T, dy.T).mul_(factors.scale)
    d_ups = [
        d_spread[index * rank : (index + 1) * rank, start:stop].T.to(dtype).contiguous()
        for index, (start, stop) in enumerate(factors.spans)
    ]
    return [*torch.split(product(d_narrow.T, x.T).to(dtype), rank), *d_ups]


class _AddLowRank(torch.autograd.Function):
    """y += scale * B A x in place, for all parts of a site at once; saves x and the rank-wide x A^T alone.

    y comes first because autograd takes the first input for the one written to where y is a view.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, scale: float, spans: Spans, *factors: Tensor) -> Tensor:
        parts = _factors(scale, spans, factors)
        narrow = narrowed(x, parts)
        y.add_(widened(narrow, parts, y.shape[1]))
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, narrow, *factors)
        ctx.scale, ctx.spans = scale, spans
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        x, narrow, *saved = ctx.saved_tensors
        factors = _factors(ctx.scale, ctx.spans, saved)
        d_narrow = narrow_gradient(dy, factors)
        dx = rows_gradient(d_narrow, factors) if ctx.needs_input_grad[1] else None
        return dy, dx, None, None, *factor_gradients(dy, d_narrow, x, narrow, factors)


def _factors(scale: float, spans: Spans, tensors: Sequence[Tensor]) -> Factors:
    return Factors(scale, spans, tuple(tensors[: len(spans)]), tuple(tensors[len(spans) :]))


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
