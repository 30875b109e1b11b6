"""Attention of a stretch of rows by plain matrix products, forward and backward: for fp32 on the CPU.

Knows blocks of query rows against all keys that they may see, the scores' log-sum-exp, and how the products are laid
out so that oneDNN runs each near the machine's rate; the query heads of one key head are stacked into one product.
ATen's flash kernel multiplies through MKL, at a quarter of that rate on processors not made by Intel. Refuses to know
documents and how parts over disjoint keys are joined.

Letters: Tq query rows, Tk key rows, Hk key heads, G query heads a key head, D values a head. Scores are scaled by
1 / sqrt(D) and kept in base two, because PyTorch's exp2 takes a quarter of its exp's time.
"""

import math
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from smedje.modeling.products import product

SHORTEST = 96  # keys: below, the calls cost more than the flash kernel's slower products
_ROWS = 128  # query rows a block: less waste above the diagonal against better products
_ROWS_BELOW = 512  # query rows a block where all keys are seen: scores that stay in the cache against better products
_LOG2E = math.log2(math.e)


def attend_dense(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """q [Hk, G, Tq, D], k and v [Hk, Tk, D] -> out [Tq, Hk, G, D] and log-sum-exp [Tq, Hk, G]. No gradients.

    causal: row i sees keys 0..i, for Tq == Tk only.
    """
    heads, group, rows, size = q.shape
    out, lse = q.new_empty(rows, heads, group, size), q.new_empty(rows, heads, group)
    for start, stop in _blocks(rows, causal=causal):
        seen, count = (stop if causal else k.shape[1]), stop - start
        for head in range(heads):
            block = (q[head, :, start:stop] * (size**-0.5 * _LOG2E)).view(group * count, size)
            scores = product(block, k[head, :seen])
            if causal:
                scores.view(group, count, seen)[:, :, start:].add_(_hidden(count))
            most = scores.amax(-1)
            weights = scores.sub_(most[:, None]).exp2_()
            total = weights.sum(-1)
            mixed = product(weights, v[head, :seen].T).div_(total[:, None])
            out[start:stop, head] = mixed.view(group, count, size).transpose(0, 1)
            lse[start:stop, head] = total.log2_().add_(most).view(group, count).T
    return out, lse.div_(_LOG2E)


def attend_dense_backward(
    d_out: Tensor, saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their shapes; d_out [Tq, Hk, G, D]. saved: q, k, v, out, log-sum-exp.

    With `out` and log-sum-exp merged over more keys than k's, the result is this part's exact share.
    """
    q, k, v, out, lse = saved
    heads, group, rows, size = q.shape
    d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    # Scores come out transposed, so that what is taken off each query row is a bias of the product.
    minus_delta = torch.linalg.vecdot(d_out, out).neg_().permute(1, 2, 0).contiguous()
    minus_lse = (lse * -_LOG2E).permute(1, 2, 0).contiguous()
    d_out = d_out.permute(1, 2, 0, 3)
    for start, stop in _blocks(rows, causal=causal):
        seen, count = (stop if causal else k.shape[1]), stop - start
        for head in range(heads):
            block = (q[head, :, start:stop] * (size**-0.5 * _LOG2E)).view(group * count, size)
            d_block = d_out[head, :, start:stop].reshape(group * count, size)
            keys, values = k[head, :seen], v[head, :seen]
            weights = product(keys, block, minus_lse[head, :, start:stop].reshape(-1))
            if causal:
                weights.view(seen, group, count)[start:].add_(_hidden(count).T[:, None])
            weights.exp2_()
            d_v[head, :seen].add_(product(weights, d_block.T))
            d_scores = product(values, d_block, minus_delta[head, :, start:stop].reshape(-1)).mul_(weights)
            d_k[head, :seen].add_(product(d_scores, block.T), alpha=1 / _LOG2E)
            turned = product(keys.T.contiguous(), d_scores.T).view(size, group, count)
            torch.mul(turned.permute(1, 2, 0), size**-0.5, out=d_q[head, :, start:stop])
    return d_q, d_k, d_v


def _blocks(rows: int, *, causal: bool) -> Iterator[tuple[int, int]]:
    """Stretches of query rows of about equal length."""
    count = max(1, round(rows / (_ROWS if causal else _ROWS_BELOW)))
    cuts = [rows * number // count for number in range(count + 1)]
    yield from pairwise(cuts)


@cache
def _hidden(rows: int) -> Tensor:
    """0 where a row sees a key of its own block, minus infinity where it does not: [rows, rows]."""
    return torch.full((rows, rows), -torch.inf).triu_(1)
