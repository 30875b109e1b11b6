"""What each row of a step attends to: its own sequence, as far as it is in the cache.

Knows chunks, places in the cache and windows. Rows of completions take a way of their own: what all layers look at is
laid out before the first, and a beginning that several of them share is read once. Knows nothing of models.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from smedje.modeling.attention import Beginning, cached_attention, decode_attention
from smedje.modeling.transformer import Attend
from smedje.serving.descent import worth_reading_once
from smedje.serving.kv_cache import KVCache
from smedje.serving.sequence import Chunk

# What decode_attention takes after the queries: the rows' keys, their values, and the beginnings that they share.
Seen = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Beginning]]

Part = TypeVar("Part")


def attention(cache: KVCache, chunks: Sequence[Chunk], windows: Sequence[int | None]) -> Attend:
    """An Attend for these chunks' rows in their order. windows: per layer, DecoderShape.windows."""
    if all(chunk.count == 1 for chunk in chunks):
        return _Completions(cache, chunks, windows)
    return _Mixed(cache, chunks, windows)


class _Mixed:
    """Prompts' chunks one by one, then all completions at once."""

    def __init__(self, cache: KVCache, chunks: Sequence[Chunk], windows: Sequence[int | None]) -> None:
        placed = list(zip(chunks, accumulate(chunk.count for chunk in chunks), strict=True))
        self._cache = cache
        self._windows = windows
        self._prompts = [(chunk, slice(end - chunk.count, end)) for chunk, end in placed if chunk.count > 1]
        self._rows = _picked([end - 1 for chunk, end in placed if chunk.count == 1], cache.device)
        single = [chunk for chunk in chunks if chunk.count == 1]
        self._completions = _Completions(cache, single, windows) if single else None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = torch.empty_like(q)
        for chunk, rows in self._prompts:
            keys, values = self._cache.extend(chunk.sequence.id, layer, start=chunk.start, k=k[rows], v=v[rows])
            mixed[rows] = cached_attention(q[rows], keys, values, window=self._windows[layer])
        if self._completions is not None:
            mixed[self._rows] = self._completions(layer, q[self._rows], k[self._rows], v[self._rows])
        return mixed


class _Completions:
    """One row of each of several sequences."""

    def __init__(self, cache: KVCache, chunks: Sequence[Chunk], windows: Sequence[int | None]) -> None:
        keys, values = zip(*(cache.places(chunk.sequence.id, chunk.start) for chunk in chunks), strict=True)
        self._places = _by_layer((*keys, *values))
        kinds = {window: seen(cache, chunks, window) for window in set(windows)}
        self._seen = [kinds[window][layer] for layer, window in enumerate(windows)]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch._foreach_copy_(self._places[layer], (*k.unbind(), *v.unbind()))
        return decode_attention(q, *self._seen[layer])


def seen(cache: KVCache, chunks: Sequence[Chunk], window: int | None) -> list[Seen]:
    """For each layer what these chunks of one row see under a window.

    Rows whose window leaves their beginning behind share none, and neither does anything on other devices than CPUs.
    """
    firsts = [0 if window is None else max(0, chunk.start + 1 - window) for chunk in chunks]
    descents = [cache.descent(chunk.sequence.id, chunk.start) for chunk in chunks]
    alone = cache.device.type != "cpu"
    groups = worth_reading_once(
        [() if alone or first else descent for first, descent in zip(firsts, descents, strict=True)]
    )
    parts: list[list[Beginning]] = []
    for rows, length in groups:
        picked = _picked(rows, cache.device)
        held = cache.held_between(chunks[rows[0]].sequence.id, 0, length)
        parts.append([Beginning(picked, *both) for both in zip(*held, strict=True)])
        for row in rows:
            firsts[row] = length
    own = [
        cache.held_between(chunk.sequence.id, first, chunk.start + 1)
        for chunk, first in zip(chunks, firsts, strict=True)
    ]
    keys, values = (_by_layer(kind) for kind in zip(*own, strict=True))
    beginnings = _by_layer(parts) if parts else [()] * len(keys)
    return list(zip(keys, values, beginnings, strict=True))


def _by_layer(parts: Sequence[Sequence[Part]]) -> list[tuple[Part, ...]]:
    """For each layer what each part has for it."""
    return list(zip(*parts, strict=True))


def _picked(rows: Sequence[int], device: torch.device) -> slice | Tensor:
    """The rows as what picks them fastest; they ascend."""
    if rows and rows[-1] - rows[0] == len(rows) - 1:
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=device)
