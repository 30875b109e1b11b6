"""Attention with its log-sum-exp, exact merging, caches and documents, against dense attention in double precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smedje.modeling import attention
from smedje.modeling.attention import (
    DocumentAttention,
    attend_documents,
    attention_with_lse,
    cached_attention,
    merge,
)

HEADS, KV_HEADS, SIZE = 6, 2, 16


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rows(count: int, heads: int, *, seed: int) -> Tensor:
    """Random rows [count, heads, SIZE], wide enough that attention is uneven."""
    return 1.5 * torch.randn(count, heads, SIZE, generator=torch.Generator().manual_seed(seed))


def dense(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention by its definition in fp64, with `visible` [Tq, Tk]: out and log-sum-exp."""
    group = q.shape[1] // k.shape[1]
    k, v = (part.double().repeat_interleave(group, dim=1) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~visible, -torch.inf)
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    return out, scores.logsumexp(-1).transpose(0, 1)


def causal(q_rows: int, keys: int, window: int | None = None) -> Tensor:
    """Which keys each of the last q_rows rows sees."""
    distance = torch.arange(keys - q_rows, keys)[:, None] - torch.arange(keys)
    return (distance >= 0) & (distance < (keys if window is None else window))


@pytest.mark.parametrize("kernel", [attention._cpu_flash, attention._plain])
@pytest.mark.parametrize("is_causal", [True, False])
def test_output_and_log_sum_exp(kernel: Callable[..., tuple[Tensor, Tensor]], is_causal: bool) -> None:
    """Both kernels give dense attention's output and log-sum-exp, grouped queries included."""
    q, k, v = rows(70, HEADS, seed=0), rows(70, KV_HEADS, seed=1), rows(70, KV_HEADS, seed=2)
    out, lse = kernel(q, k, v, causal=is_causal)
    visible = causal(70, 70) if is_causal else torch.ones(70, 70, dtype=torch.bool)
    wanted_out, wanted_lse = dense(q, k, v, visible)
    assert (out - wanted_out).abs().max() <= 1e-5
    assert (lse - wanted_lse).abs().max() <= 1e-5


@pytest.mark.parametrize(("q_rows", "split"), [(1, 30), (13, 40), (70, 7)])
def test_merge_of_disjoint_keys_is_exact(q_rows: int, split: int) -> None:
    """Attention over two sets of keys, merged by log-sum-exp, is attention over all keys."""
    q, k, v = rows(q_rows, HEADS, seed=3), rows(90, KV_HEADS, seed=4), rows(90, KV_HEADS, seed=5)
    first = attention_with_lse(q, k[:split], v[:split], causal=False)
    second = attention_with_lse(q, k[split:], v[split:], causal=False)
    out, lse = merge(*first, *second)
    wanted_out, wanted_lse = dense(q, k, v, torch.ones(q_rows, 90, dtype=torch.bool))
    assert (out - wanted_out).abs().max() <= 1e-5
    assert (lse - wanted_lse).abs().max() <= 1e-5


def test_merge_survives_very_uneven_parts() -> None:
    """A part whose scores dwarf the other's takes over without overflow."""
    q, k, v = rows(4, HEADS, seed=6), rows(8, KV_HEADS, seed=7), rows(8, KV_HEADS, seed=8)
    strong = attention_with_lse(40 * q, k, v, causal=False)
    weak = attention_with_lse(0 * q, k, v, causal=False)
    out, lse = merge(strong[0], strong[1] + 500, *weak)
    assert torch.isfinite(out).all()
    assert torch.isfinite(lse).all()
    assert (out - strong[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("window", [None, 1, 9, 60, 1000])
@pytest.mark.parametrize(("q_rows", "keys"), [(1, 1), (1, 57), (8, 57), (57, 57)])
def test_cached_attention_is_the_tail_of_a_causal_one(q_rows: int, keys: int, window: int | None) -> None:
    """Decode, chunked prefill and full prefill give the same rows as one causal attention, windowed or not."""
    q, k, v = rows(q_rows, HEADS, seed=9), rows(keys, KV_HEADS, seed=10), rows(keys, KV_HEADS, seed=11)
    wanted, _ = dense(q, k, v, causal(q_rows, keys, window))
    assert (cached_attention(q, k, v, window=window) - wanted).abs().max() <= 1e-5


def test_windows_longer_than_a_band_of_rows() -> None:
    """A document many bands long is still exact."""
    q, k, v = rows(1300, 2, seed=12), rows(1300, 1, seed=13), rows(1300, 1, seed=14)
    wanted, _ = dense(q, k, v, causal(1300, 1300, 200))
    assert (cached_attention(q, k, v, window=200) - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("window", [None, 6])
def test_documents_never_see_each_other_and_gradients_are_exact(window: int | None) -> None:
    """A flat batch equals dense attention under the documents' mask, in output and in all three gradients."""
    lengths = (11, 1, 23, 5)
    total = sum(lengths)
    inputs = [rows(total, heads, seed=15 + heads).requires_grad_() for heads in (HEADS, KV_HEADS)]
    q, k = inputs
    v = rows(total, KV_HEADS, seed=30).requires_grad_()
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    visible = (document[:, None] == document) & causal(total, total, window)
    weight = rows(total, HEADS, seed=31)
    out = DocumentAttention(lengths, [None, window])(1, q, k, v)
    grads = torch.autograd.grad((out * weight).sum(), (q, k, v))
    wanted, _ = dense(q, k, v, visible)
    wanted_grads = torch.autograd.grad((wanted * weight).sum(), (q, k, v))
    assert (out - wanted).abs().max() <= 1e-5
    for ours, theirs in zip(grads, wanted_grads, strict=True):
        assert (ours - theirs).abs().max() <= 2e-5
    assert torch.equal(out, attend_documents(q, k, v, lengths, window=window))
