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

from smedje.modeling.attention import attention_with_lse, merge
from smedje.modeling.dense_attention import SHORTEST, attend_dense, attend_dense_backward


class Segment(NamedTuple):
    """Rows [start, stop) of the stream, which attend among themselves causally; rows [stop, end) descend from them."""

    start: int
    stop: int
    end: int


class TreeAttention:
    """An Attend for a flat stream of segments in depth-first order, on the CPU, without attention windows."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        assert all(s.start < s.stop <= s.end for s in segments), "a segment has at least one row"
        self.segments = tuple(segments)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = _Tree.apply(q, k, v, self.segments)  # type: ignore[no-untyped-call]
        return out


def _heads_first(rows: Tensor) -> Tensor:
    """[T, H, D] as the kernel's [1, H, T, D]."""
    return rows.transpose(0, 1)[None]


def _grouped(rows: Tensor, key_heads: int) -> Tensor:
    """[T, Hq, D] as [Hk, G, T, D]."""
    return _split_heads(rows, key_heads).permute(1, 2, 0, 3)


def _split_heads(rows: Tensor, key_heads: int) -> Tensor:
    """[T, Hq, ...] as [T, Hk, G, ...]."""
    return rows.view(rows.shape[0], key_heads, -1, *rows.shape[2:])


def _is_dense(q: Tensor, k: Tensor) -> bool:
    return q.dtype == torch.float32 and min(q.shape[0], k.shape[0]) >= SHORTEST


def _forward(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """attention_with_lse of a part, by the faster kernel for its size."""
    if not _is_dense(q, k):
        return attention_with_lse(q, k, v, causal=causal)
    out, lse = attend_dense(_grouped(q, k.shape[1]), k.transpose(0, 1), v.transpose(0, 1), causal=causal)
    return out.flatten(1, 2), lse.flatten(1, 2)


def _backward(d_out: Tensor, saved: tuple[Tensor, ...], *, causal: bool) -> list[Tensor]:
    """Gradients of a part's q, k, v. saved: these, then the output and log-sum-exp merged over all parts.

    With these the kernel yields the part's exact share of the gradient.
    """
    q, k, v, out, lse = saved
    if not _is_dense(q, k):
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(_heads_first(rows) for rows in (d_out, q, k, v, out)),
            lse.transpose(0, 1)[None].contiguous(),
            0.0,
            causal,
        )
        return [gradient[0].transpose(0, 1) for gradient in found]
    few = k.shape[1]
    d_q, d_k, d_v = attend_dense_backward(
        _split_heads(d_out, few),
        (
            _grouped(q, few),
            k.transpose(0, 1),
            v.transpose(0, 1),
            _split_heads(out, few),
            _split_heads(lse, few),
        ),
        causal=causal,
    )
    return [d_q.flatten(0, 1).transpose(0, 1), d_k.transpose(0, 1), d_v.transpose(0, 1)]


def _contiguous_heads(rows: Tensor) -> Tensor:
    """The same [T, H, D] with each head's rows side by side in memory, as products want them."""
    return rows.transpose(0, 1).contiguous().transpose(0, 1)


def _wide(rows: Tensor) -> Tensor:
    """Halves as fp32, in which everything within is computed."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


class _Tree(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: tuple[Segment, ...]) -> Tensor:
        kept = [_contiguous_heads(rows) for rows in (q, k, v)]
        q, k, v = (_wide(rows) for rows in kept)
        out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)
        for start, stop, _ in segments:
            rows = slice(start, stop)
            out[rows], lse[rows] = _forward(q[rows], k[rows], v[rows], causal=True)
        for start, stop, end in segments:
            if end == stop:
                continue
            below, above = slice(stop, end), slice(start, stop)
            part = _forward(q[below], k[above], v[above], causal=False)
            out[below], lse[below] = merge(out[below], lse[below], *part)
        out = out.to(kept[0].dtype)
        ctx.save_for_backward(*kept, out, lse)
        ctx.segments = segments
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        saved = ctx.saved_tensors
        dtype = saved[0].dtype
        q, k, v, out, lse = (_wide(rows) for rows in saved)
        d_out = _wide(grads[0]).contiguous()
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

        def part(queries: slice, keys: slice, *, causal: bool) -> list[Tensor]:
            saved = (q[queries], k[keys], v[keys], out[queries], lse[queries])
            return _backward(d_out[queries], saved, causal=causal)

        for start, stop, _ in ctx.segments:
            rows = slice(start, stop)
            d_q[rows], d_k[rows], d_v[rows] = part(rows, rows, causal=True)
        for start, stop, end in ctx.segments:
            if end == stop:
                continue
            below, above = slice(stop, end), slice(start, stop)
            more_q, more_k, more_v = part(below, above, causal=False)
            d_q[below] += more_q
            d_k[above] += more_k
            d_v[above] += more_v
        return d_q.to(dtype), d_k.to(dtype), d_v.to(dtype), None
