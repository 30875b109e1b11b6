"""Attention over flat rows: documents of a training batch, or a sequence's cache, always exact and never padded.

Knows causal attention with grouped queries, its log-sum-exp, and how two parts over disjoint keys merge exactly.
Refuses to know where keys are stored and which rows form a document: callers pass tensors and lengths.

Letters: T rows, Hq query heads, Hk key heads (Hq is a multiple of Hk), D values a head. Scores are scaled by 1/sqrt(D).
Kernels: ATen's CPU flash attention (grouped queries native, log-sum-exp out), ATen's varlen flash attention on CUDA for
half precision, and plain matrix products elsewhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from smedje.modeling.products import one_core

_BAND_ROWS = 512  # query rows per step of windowed attention: keeps the mask small however long the document is


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention of q [Tq, Hq, D] over k, v [Tk, Hk, D] -> out [Tq, Hq, D] and the scores' log-sum-exp [Tq, Hq] (fp32).

    causal: row i sees keys 0..i, for Tq == Tk only. Gradients flow through `out`; the log-sum-exp carries none.
    """
    assert not causal or q.shape[0] == k.shape[0], "causal attention needs as many queries as keys"
    if q.device.type == "cpu":
        return _cpu_flash(q, k, v, causal=causal)
    if _has_cuda_flash(q):
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q[None], k[None], v[None], None, None, q.shape[0], k.shape[0], 0.0, causal, False
        )
        return out[0], lse[0].transpose(0, 1)
    return _plain(q, k, v, causal=causal)


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Join two attentions of the same queries over disjoint keys: out [T, Hq, D], lse [T, Hq] -> the same over all.

    Exact up to rounding (the online softmax of Milakov and Gimelshein 2018).
    """
    lse = torch.logaddexp(lse_a, lse_b)
    share_a, share_b = (lse_a - lse).exp()[..., None], (lse_b - lse).exp()[..., None]
    return (share_a * out_a + share_b * out_b).to(out_a.dtype), lse


def cached_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
    """The last Tq rows of a causal attention over Tk keys: q [Tq, Hq, D], k, v [Tk, Hk, D], Tq <= Tk -> [Tq, Hq, D].

    window: a row sees its own key and the window - 1 before it.
    """
    rows, keys = q.shape[0], k.shape[0]
    if rows == 1:
        seen = keys if window is None else min(window, keys)
        return attention_with_lse(q, k[keys - seen :], v[keys - seen :], causal=False)[0]
    if window is not None and keys > window:
        return _banded(q, k, v, window)
    if rows == keys:
        return attention_with_lse(q, k, v, causal=True)[0]
    past = keys - rows
    before = attention_with_lse(q, k[:past], v[:past], causal=False)
    within = attention_with_lse(q, k[past:], v[past:], causal=True)
    return merge(*before, *within)[0]


class Beginning(NamedTuple):
    """Keys and values [1, Hk, T, D] that some rows see before their own; a row has one beginning at most."""

    rows: slice | Tensor
    keys: Tensor
    values: Tensor


def decode_attention(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], beginnings: Sequence[Beginning] = ()
) -> Tensor:
    """One row of each of several sequences over its own keys: q [R, Hq, D], R keys, values [1, Hk, T, D] -> [R, Hq, D].

    What cached_attention gives for each row, in fewer steps between the kernels. beginnings: on CPUs, what comes before
    those keys in some rows; all rows of a beginning are one call, so that it is read once (cascade attention, Ye et al.
    2024; Hydragen, arXiv:2402.05099).
    """
    rows = torch.split(q.unsqueeze(2), 1)
    if q.device.type != "cpu":
        assert not beginnings, "other devices read each row's keys on their own"
        parts = (part.squeeze(2) for part in rows)
        seen = zip(keys, values, strict=True)
        return torch.cat(
            [
                cached_attention(part, k[0].transpose(0, 1), v[0].transpose(0, 1))
                for part, (k, v) in zip(parts, seen, strict=True)
            ]
        )
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    with one_core():
        own = [flash(*each) for each in zip(rows, keys, values, strict=True)]
        out = torch.cat([part for part, _ in own]).squeeze(2)
        if beginnings:
            lse = torch.cat([part for _, part in own]).squeeze(2)
        for some, k, v in beginnings:
            shared, shared_lse = flash(q[some].transpose(0, 1)[None], k, v)
            out[some], _ = merge(out[some], lse[some], shared[0].transpose(0, 1), shared_lse[0].transpose(0, 1))
    return out


def attend_documents(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], *, window: int | None = None) -> Tensor:
    """Causal attention within each document and never across: q [T, Hq, D], k, v [T, Hk, D], sum(lengths) == T."""
    if _has_cuda_flash(q):
        return _cuda_documents(q, k, v, lengths, window)
    if len(lengths) == 1:
        return cached_attention(q, k, v, window=window)
    parts = zip(*(torch.split(rows, list(lengths)) for rows in (q, k, v)), strict=True)
    return torch.cat([cached_attention(*part, window=window) for part in parts])


class DocumentAttention:
    """An Attend for a flat batch of whole documents, in stream order. `windows`: per layer, DecoderShape.windows."""

    def __init__(self, lengths: Sequence[int], windows: Sequence[int | None] | None = None) -> None:
        assert all(length > 0 for length in lengths), "a document has at least one token"
        self.lengths = tuple(lengths)
        self.windows = None if windows is None else tuple(windows)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        window = None if self.windows is None else self.windows[layer]
        return attend_documents(q, k, v, self.lengths, window=window)


def _cpu_flash(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], 0.0, causal, attn_mask=mask
    )
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


def _has_cuda_flash(q: Tensor) -> bool:
    return (
        q.device.type == "cuda"
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[-1] <= 256
        and q.shape[-1] % 8 == 0
    )


def _cuda_documents(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], window: int | None) -> Tensor:
    longest = max(lengths)
    starts = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32).to(q.device, non_blocking=True)
    left = -1 if window is None else window - 1
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, starts, starts, longest, longest, 0.0, True, False, window_size_left=left, window_size_right=0
    )[0]
    return out


def _plain(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Matrix products with fp32 scores: for devices and types without a flash kernel."""
    rows, keys, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    grouped = q.float().reshape(rows, k.shape[1], group, q.shape[2])
    scores = torch.einsum("qhgd,khd->hgqk", grouped, k.float()) * q.shape[-1] ** -0.5
    if causal:
        mask = torch.full((rows, keys), -torch.inf, device=q.device).triu(1)
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    out = torch.einsum("hgqk,khd->qhgd", (scores - lse[..., None]).exp(), v.float()).flatten(1, 2)
    return out.to(q.dtype), lse.flatten(0, 1).transpose(0, 1).detach()


def _banded(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """cached_attention with a window shorter than the keys, a band of query rows at a time."""
    rows, past = q.shape[0], k.shape[0] - q.shape[0]
    bands = []
    for start in range(0, rows, _BAND_ROWS):
        stop = min(start + _BAND_ROWS, rows)
        first, last = max(0, past + start - window + 1), past + stop
        distance = torch.arange(past + start, last, device=q.device)[:, None] - torch.arange(
            first, last, device=q.device
        )
        hidden = (distance < 0) | (distance >= window)
        mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -torch.inf)
        attend = _cpu_flash if q.device.type == "cpu" else _plain
        bands.append(attend(q[start:stop], k[first:last], v[first:last], mask=mask)[0])
    return torch.cat(bands)
