"""Attention over a forest of shared prefixes: a prefix that many documents begin with is computed once, exactly.

Knows segments of a flat stream laid out depth first, so that the descendants of a segment follow it without gaps: a
row sees its own segment causally and all of every segment above it. Parts over disjoint keys are merged by their
log-sum-exp, forward and backward, as in ring attention; no mask, no copy of keys.
Refuses to know tokens, labels and how the forest was found.

Letters: T rows, Hq query heads, Hk key heads, G query heads a key head, D values a head.
Sources: Prefix Grouper (arXiv:2506.05433) for the equality of gradients, Tree Training (arXiv:2511.00413).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smedje.modeling.attention import merge
from smedje.modeling.dense_attention import SCALE, SHORTEST, attend_dense, attend_dense_backward
from smedje.modeling.heads import HeadSizes, Turns, grouped, laid_back, laid_out, turns_of, widened


class Segment(NamedTuple):
    """Rows [start, stop) of the stream, which attend among themselves causally; rows [stop, end) descend from them."""

    start: int
    stop: int
    end: int


class TreeAttention:
    """An Attend for a flat stream of segments in depth-first order, on the CPU, without attention windows.

    It also turns queries and keys itself, on the way to where attention wants them.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        assert all(s.start < s.stop <= s.end for s in segments), "a segment has at least one row"
        self.segments = tuple(segments)
        self._known: tuple[Tensor, Turns] | None = None  # the angles of the pass that goes on, and what they came to

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sizes = HeadSizes(q.shape[1], k.shape[1], q.shape[2])
        still = q.new_ones(q.shape[0], 1, 0, dtype=torch.promote_types(q.dtype, torch.float32))
        turns = turns_of(still, still, sizes, scale=_scale(sizes))
        return self._attended(torch.cat((q, k, v), 1).flatten(1), turns, sizes).view(q.shape)

    def turn_and_attend(self, qkv: Tensor, cos: Tensor, sin: Tensor, sizes: HeadSizes) -> Tensor:
        """q | k | v [T, N * D], not turned yet, and the angles, one tensor for all layers -> [T, Hq * D]."""
        if self._known is None or self._known[0] is not cos:
            self._known = cos, turns_of(cos, sin, sizes, scale=_scale(sizes))
        return self._attended(qkv, self._known[1], sizes)

    def _attended(self, qkv: Tensor, turns: Turns, sizes: HeadSizes) -> Tensor:
        out: Tensor = _Tree.apply(qkv, turns, sizes, self.segments)  # type: ignore[no-untyped-call]
        return out


def _scale(sizes: HeadSizes) -> float:
    return float(SCALE * sizes.size**-0.5)


def _is_dense(q: Tensor, k: Tensor) -> bool:
    return q.dtype == torch.float32 and min(q.shape[1], k.shape[1]) >= SHORTEST


def _heads_first(rows: Tensor) -> Tensor:
    """[Hk, T, G, ...] as the flash kernel's [1, Hq, T, ...]."""
    return rows.transpose(1, 2).flatten(0, 1)[None]


def _forward(q: Tensor, k: Tensor, v: Tensor, places: tuple[Tensor, Tensor], *, causal: bool) -> None:
    """Write a part's out [Tq, Hk, G, D] and log-sum-exp [Hk, Tq, G], by the faster kernel for its size."""
    if _is_dense(q, k):
        attend_dense(q, k, v, places, causal=causal)
        return
    heads = q.shape[0], q.shape[2]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _heads_first(q), k[None], v[None], 0.0, causal, scale=1 / SCALE
    )
    places[0].copy_(out[0].unflatten(0, heads).permute(2, 0, 1, 3))
    places[1].copy_(lse[0].unflatten(0, heads).transpose(1, 2))


def _backward(d_out: Tensor, saved: tuple[Tensor, ...], places: tuple[Tensor, Tensor, Tensor], *, causal: bool) -> None:
    """Write a part's gradient of q, add those of k and v. saved: these, log-sum-exp, d_out * out summed, out.

    With the last three of all parts merged the kernel yields the part's exact share of the gradient.
    """
    q, k, v, lse, delta, out = saved
    if _is_dense(q, k):
        attend_dense_backward(d_out, (q, k, v, lse, delta), places, causal=causal)
        return
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _heads_first(d_out),
        _heads_first(q),
        k[None],
        v[None],
        _heads_first(out.to(q.dtype)),
        _heads_first(lse).contiguous(),
        0.0,
        causal,
        scale=1 / SCALE,
    )
    d_q, d_k, d_v = places
    d_q.copy_(found[0][0].unflatten(0, (q.shape[0], q.shape[2])).transpose(1, 2))
    d_k.add_(found[1][0])
    d_v.add_(found[2][0])


class _Tree(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, turns: Turns, sizes: HeadSizes, segments: tuple[Segment, ...]) -> Tensor:
        q, k, v = laid_out(qkv, turns, sizes)
        heads, rows, group, size = q.shape
        # Where parts are joined, they are joined before they are rounded.
        joined = any(end > stop for _, stop, end in segments)
        out = qkv.new_empty(rows, heads, group, size, dtype=q.dtype if joined else qkv.dtype)
        lse = q.new_empty(heads, rows, group)
        for start, stop, _ in segments:
            own = slice(start, stop)
            _forward(q[:, own], k[:, own], v[:, own], (out[own], lse[:, own]), causal=True)
        for start, stop, end in segments:
            if end == stop:
                continue
            below, above = slice(stop, end), slice(start, stop)
            part = q.new_empty(end - stop, heads, group, size), q.new_empty(heads, end - stop, group)
            _forward(q[:, below], k[:, above], v[:, above], part, causal=False)
            out[below], merged = merge(out[below], lse[:, below].transpose(0, 1), part[0], part[1].transpose(0, 1))
            lse[:, below] = merged.transpose(0, 1)
        out = out.view(rows, -1).to(qkv.dtype)
        ctx.save_for_backward(qkv, out, lse)
        ctx.turns, ctx.sizes, ctx.segments = turns, sizes, segments
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, out, lse = ctx.saved_tensors
        # The turned rows are computed again: that costs less than to keep them, in memory and in time.
        q, k, v = laid_out(qkv, ctx.turns, ctx.sizes)
        out = grouped(out, ctx.sizes)
        d_out = widened(grouped(grads[0], ctx.sizes), q.dtype).contiguous()
        delta = (d_out * widened(out, q.dtype)).sum(-1)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)

        def part(queries: slice, keys: slice, d_q: Tensor, *, causal: bool) -> None:
            saved = q[:, queries], k[:, keys], v[:, keys], lse[:, queries], delta[:, queries], out[:, queries]
            _backward(d_out[:, queries], saved, (d_q, d_k[:, keys], d_v[:, keys]), causal=causal)

        for start, stop, _ in ctx.segments:
            own = slice(start, stop)
            part(own, own, d_q[:, own], causal=True)
        for start, stop, end in ctx.segments:
            if end == stop:
                continue
            below = slice(stop, end)
            more = q.new_empty(d_q[:, below].shape)
            part(below, slice(start, stop), more, causal=False)
            d_q[:, below] += more
        return laid_back((d_q, d_k, d_v), ctx.turns, ctx.sizes, qkv.dtype), None, None, None
