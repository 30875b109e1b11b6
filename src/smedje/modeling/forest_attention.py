"""Attention over a forest of shared prefixes in few large calls, for devices that want work in bulk.

Knows the same mathematics as tree_attention: a row sees its own segment causally and all of every segment above it, and
parts over disjoint keys are merged by their log-sum-exp, forward and backward. There each part is a call of its own,
which suits a CPU; here all segments are one call and each depth of the forest one more, however many documents.
Borders go to the device once a batch: no layer waits for the host.
Refuses to know tokens, labels and how the forest was found.

Letters: T rows, Hq query heads, Hk key heads, D values a head, N stretches.
Kernels: ATen's varlen flash attention for half precision on CUDA, plain matrix products elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from smedje.modeling.tree_attention import Segment

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Stretches:
    """N stretches of queries, each over its own stretch of keys, end to end in both streams.

    Borders are [N + 1] and start at 0: on the host as tuples, on the device as int32 tensors.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    device_queries: Tensor
    device_keys: Tensor

    @property
    def longest(self) -> tuple[int, int]:
        """The longest stretch of queries and of keys."""
        return max(b - a for a, b in pairwise(self.queries)), max(b - a for a, b in pairwise(self.keys))


@dataclass(frozen=True)
class Level:
    """All segments of one depth that others descend from: the rows below them, their own rows, and which see which."""

    below: slice | Tensor
    above: slice | Tensor
    stretches: Stretches


class ForestAttention:
    """An Attend for a flat stream of segments in depth-first order, without attention windows, on any device."""

    def __init__(self, segments: Sequence[Segment], device: torch.device | str) -> None:
        assert all(s.start < s.stop <= s.end for s in segments), "a segment has at least one row"
        self._own = _stretches([(s.start, s.stop) for s in segments], [(s.start, s.stop) for s in segments], device)
        self._levels = tuple(_levels(segments, device))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = _Forest.apply(q, k, v, self._own, self._levels)  # type: ignore[no-untyped-call]
        return out


def attend_stretches(q: Tensor, k: Tensor, v: Tensor, s: Stretches, *, causal: bool) -> tuple[Tensor, Tensor]:
    """q [Tq, Hq, D] over k, v [Tk, Hk, D] -> out [Tq, Hq, D] and the scores' log-sum-exp [Hq, Tq] in fp32."""
    if _takes_flash(q):
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, s.device_queries, s.device_keys, *s.longest, 0.0, causal, False
        )
        return out, lse
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)
    for rows, keys in _pairs(s):
        scores = _scores(q[rows], k[keys], causal=causal)
        lse[:, rows] = scores.logsumexp(-1)
        weights = (scores - lse[:, rows, None]).exp()
        out[rows] = (weights @ _spread(v[keys], q.shape[1])).transpose(0, 1).to(q.dtype)
    return out, lse


def stretches_gradient(
    d_out: Tensor, saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], s: Stretches, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v by this part. saved: q, k, v, out, lse; with the merged out and lse of several parts the
    result is this part's exact share (ring attention, Liu et al. 2023)."""
    q, k, v, out, lse = saved
    if _takes_flash(q):
        # The last two belong to dropout, which is off.
        state, unused = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
        d_q, d_k, d_v = torch.ops.aten._flash_attention_backward(
            d_out,
            q,
            k,
            v,
            out,
            lse.contiguous(),
            s.device_queries,
            s.device_keys,
            *s.longest,
            0.0,
            causal,
            state,
            unused,
        )
        return d_q, d_k, d_v
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for rows, keys in _pairs(s):
        weights = (_scores(q[rows], k[keys], causal=causal) - lse[:, rows, None]).exp()
        d_rows = d_out[rows].float().transpose(0, 1)
        along = (d_rows * out[rows].float().transpose(0, 1)).sum(-1, keepdim=True)
        d_scores = weights * (d_rows @ _spread(v[keys], q.shape[1]).transpose(1, 2) - along) * q.shape[-1] ** -0.5
        d_q[rows] = (d_scores @ _spread(k[keys], q.shape[1])).transpose(0, 1).to(q.dtype)
        d_k[keys] = _gathered(d_scores.transpose(1, 2) @ q[rows].float().transpose(0, 1), k.shape[1]).to(k.dtype)
        d_v[keys] = _gathered(weights.transpose(1, 2) @ d_rows, v.shape[1]).to(v.dtype)
    return d_q, d_k, d_v


class _Forest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, own: Stretches, levels: tuple[Level, ...]) -> Tensor:
        out, lse = attend_stretches(q, k, v, own, causal=True)
        if levels:
            wide = out.float()  # rounded once, after the last merge
            for level in levels:
                below, above = level.below, level.above
                part, more = attend_stretches(q[below], k[above], v[above], level.stretches, causal=False)
                joined = torch.logaddexp(lse[:, below], more)
                keep, add = (lse[:, below] - joined).exp().T[..., None], (more - joined).exp().T[..., None]
                wide[below] = keep * wide[below] + add * part
                lse[:, below] = joined
            out = wide.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.own, ctx.levels = own, levels
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        d_out = grads[0].contiguous()
        d_q, d_k, d_v = stretches_gradient(d_out, (q, k, v, out, lse), ctx.own, causal=True)
        for level in ctx.levels:
            below, above = level.below, level.above
            part = (q[below], k[above], v[above], out[below], lse[:, below])
            more_q, more_k, more_v = stretches_gradient(d_out[below], part, level.stretches, causal=False)
            d_q[below] += more_q
            d_k[above] += more_k
            d_v[above] += more_v
        return d_q, d_k, d_v, None, None


def _levels(segments: Sequence[Segment], device: torch.device | str) -> list[Level]:
    by_depth: dict[int, list[Segment]] = {}
    open_ends: list[int] = []
    for segment in segments:
        while open_ends and open_ends[-1] <= segment.start:
            open_ends.pop()
        if segment.end > segment.stop:
            by_depth.setdefault(len(open_ends), []).append(segment)
        open_ends.append(segment.end)
    return [
        Level(
            below=_rows([(s.stop, s.end) for s in found], device),
            above=_rows([(s.start, s.stop) for s in found], device),
            stretches=_stretches([(s.stop, s.end) for s in found], [(s.start, s.stop) for s in found], device),
        )
        for _, found in sorted(by_depth.items())
    ]


def _rows(parts: Sequence[tuple[int, int]], device: torch.device | str) -> slice | Tensor:
    """The rows of these parts: a slice where they lie without gaps, else their numbers."""
    if all(first[1] == second[0] for first, second in pairwise(parts)):
        return slice(parts[0][0], parts[-1][1])
    return torch.cat([torch.arange(start, stop) for start, stop in parts]).to(device)


def _stretches(
    queries: Sequence[tuple[int, int]], keys: Sequence[tuple[int, int]], device: torch.device | str
) -> Stretches:
    borders = []
    for parts in (queries, keys):
        ends = [0]
        for start, stop in parts:
            ends.append(ends[-1] + stop - start)
        borders.append(tuple(ends))
    on_device = [torch.tensor(b, dtype=torch.int32).to(device) for b in borders]
    return Stretches(borders[0], borders[1], on_device[0], on_device[1])


def _takes_flash(q: Tensor) -> bool:
    # Meta tensors take the same way, so that a step's calls can be checked where there is no GPU.
    return q.device.type in ("cuda", "meta") and q.dtype in _HALF and q.shape[-1] <= 256 and q.shape[-1] % 8 == 0


def _pairs(s: Stretches) -> list[tuple[slice, slice]]:
    return [(slice(*rows), slice(*keys)) for rows, keys in zip(pairwise(s.queries), pairwise(s.keys), strict=True)]


def _spread(rows: Tensor, heads: int) -> Tensor:
    """[T, Hk, D] as fp32 [Hq, T, D], each head repeated for its group of queries."""
    return rows.float().transpose(0, 1).repeat_interleave(heads // rows.shape[1], dim=0)


def _gathered(heads: Tensor, few: int) -> Tensor:
    """[Hq, T, D] summed over each group of queries: [T, Hk, D]."""
    return heads.reshape(few, -1, *heads.shape[1:]).sum(1).transpose(0, 1)


def _scores(q: Tensor, k: Tensor, *, causal: bool) -> Tensor:
    """Scaled scores in fp32: [Hq, Tq, Tk]."""
    scores: Tensor = q.float().transpose(0, 1) @ _spread(k, q.shape[1]).transpose(1, 2) * q.shape[-1] ** -0.5
    if causal:
        scores = scores + torch.full(scores.shape[1:], -torch.inf, device=q.device).triu(1)
    return scores
