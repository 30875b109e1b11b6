"""Attention of a stretch of rows by plain matrix products, forward and backward: for fp32 on the CPU.

Knows blocks of query rows against all keys that they may see, the scores' log-sum-exp, and how the products are laid
out so that oneDNN runs each near the machine's rate; the query heads of one key head are stacked into one product.
ATen's flash kernel multiplies through MKL, at a quarter of that rate on processors not made by Intel. Refuses to know
documents and how parts over disjoint keys are joined.

Letters: Tq query rows, Tk key rows, Hk key heads, G query heads a key head, D values a head. Queries come scaled by
SCALE / sqrt(D), so that scores are in base two: PyTorch's exp2 takes a quarter of its exp's time.
"""

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from smedje.modeling.products import product

SCALE = math.log2(math.e)
SHORTEST = 96  # keys: below, the calls cost more than the flash kernel's slower products
_ROWS = 128  # query rows a block: less waste above the diagonal against better products
_MOST_ROWS = 3 * _ROWS // 2  # of such a block, which is the nearest to them that divides the stretch evenly
_ROWS_BELOW = 512  # query rows a block where all keys are seen: scores that stay in the cache against better products


def attend_dense(q: Tensor, k: Tensor, v: Tensor, places: tuple[Tensor, Tensor], *, causal: bool) -> None:
    """q [Hk, Tq, G, D] scaled, k and v [Hk, Tk, D]; writes out [Tq, Hk, G, D] and log-sum-exp [Hk, Tq, G].

    No gradients. causal: row i sees keys 0..i, for Tq == Tk only.
    """
    rows, group, size = q.shape[1:]
    blocks = _blocks(rows, group, 0 if causal else k.shape[1])
    for head, (queries, keys, values) in enumerate(zip(_flat(q), k, v, strict=True)):
        out, lse = places[0][:, head], places[1][head]
        for (start, stop), own, seen in blocks:
            scores = product(queries[own], keys[:seen])
            if causal:
                count = stop - start
                scores.view(count, group, seen)[:, :, start:].add_(_ahead()[:count, None, :count])
            most = scores.amax(-1)
            weights = scores.sub_(most[:, None]).exp2_()
            total = weights.sum(-1)
            mixed = product(weights, values[:seen].T).div_(total[:, None])
            out[start:stop] = mixed.view(-1, group, size)
            torch.div(total.log2_().add_(most).view(-1, group), SCALE, out=lse[start:stop])


def attend_dense_backward(
    d_out: Tensor, saved: tuple[Tensor, ...], places: tuple[Tensor, Tensor, Tensor], *, causal: bool
) -> None:
    """Write the gradient of q and add those of k and v to what is there, in their shapes; d_out [Hk, Tq, G, D].

    saved: q, k, v, log-sum-exp and d_out * out summed over D, [Hk, Tq, G] each. With these of more keys than k's, the
    result is this part's exact share.
    """
    q, k, v, lse, delta = saved
    rows, group = q.shape[1:3]
    blocks = _blocks(rows, group, 0 if causal else k.shape[1])
    # Scores come out transposed, so that what is taken off each query row is a bias of the product.
    queried = zip(_flat(q), _flat(d_out), _flat(lse * -SCALE), _flat(-delta), _flat(places[0]), strict=True)
    for of_queries, keys, values, d_keys, d_values in zip(queried, k, v, *places[1:], strict=True):
        for (start, stop), own, seen in blocks:
            block, d_block, minus_lse, minus_delta, d_queries = (part[own] for part in of_queries)
            weights = product(keys[:seen], block, minus_lse)
            if causal:
                weights[start:].add_(_behind(group)[: stop - start, : len(block)])
            weights.exp2_()
            d_values[:seen].add_(product(weights, d_block.T))
            d_scores = product(values[:seen], d_block, minus_delta).mul_(weights)
            d_keys[:seen].add_(product(d_scores, block.T), alpha=1 / SCALE)
            d_queries.copy_(product(keys[:seen].T.contiguous().div_(SCALE), d_scores.T).T)


def _flat(heads: Tensor) -> tuple[Tensor, ...]:
    """Of each key head's [Tq, G, ...] the query rows of all its heads: [Tq * G, ...]."""
    return tuple(part.flatten(0, 1) for part in heads)


def _blocks(rows: int, group: int, keys: int) -> list[tuple[tuple[int, int], slice, int]]:
    """Stretches of query rows of about equal length, where their heads' rows are, and how many keys they see.

    keys: that every row sees; 0 where a row sees those up to its own.
    """
    count = max(1, round(rows / (_ROWS_BELOW if keys else _ROWS)))
    cuts = [rows * number // count for number in range(count + 1)]
    return [((start, stop), slice(start * group, stop * group), keys or stop) for start, stop in pairwise(cuts)]


@cache
def _ahead() -> Tensor:
    """0 where a row sees a key of its own block, minus infinity where it does not: [rows, keys]."""
    return torch.full((_MOST_ROWS, _MOST_ROWS), -torch.inf).triu_(1)


@cache
def _behind(group: int) -> Tensor:
    """The same transposed, each row once for every query head: [keys, rows * G]."""
    return _ahead().T.repeat_interleave(group, dim=1)
