"""Keys and values of sequences, one growing stretch of memory each, under one budget.

A stretch of a sequence that has ended rests: it stays until its places are wanted, so that a prompt with the same
beginning takes a copy instead of computing it again. Knows places in tokens; knows nothing of who runs or why. While a
stretch grows, the old and the new one stand side by side for the moment of the copy.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smedje.modeling.config import DecoderShape
from smedje.serving.descent import Descent, clipped, computed_by
from smedje.serving.prefixes import BLOCK, PrefixTree

# A stretch grows to twice its size; where the budget forbids that, by this many places.
STEP = 64
# Share of the budget that may rest, at most: what rests is memory that nobody waits for.
RESTING_SHARE = 0.5


def bytes_per_token(shape: DecoderShape, *, dtype: torch.dtype) -> int:
    """Memory of one token's keys and values in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * dtype.itemsize


@dataclass
class _Stretch:
    """memory: [2 (k, v), layers, places, kv_heads, head_size]. descent: who computed what is in it."""

    memory: Tensor
    descent: Descent

    @property
    def places(self) -> int:
        return self.memory.shape[2]


class KVCache:
    """Places for `capacity` tokens; a stretch for each sequence.

    held: places of running sequences. resting: places of ended ones, never more than half of all, or than
    `most_resting`. reuse: whether beginnings are shared at all.
    """

    def __init__(
        self,
        shape: DecoderShape,
        *,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        reuse: bool = True,
        most_resting: int | None = None,
    ) -> None:
        self.capacity = capacity
        half = int(capacity * RESTING_SHARE)
        self._most_resting = half if most_resting is None else min(half, most_resting)
        self.held = 0
        self.resting = 0
        self._shape = shape
        self._dtype = dtype
        self.device = device
        self.reuse = reuse
        self._stretches: dict[int, _Stretch] = {}
        self._rests: OrderedDict[int, _Stretch] = OrderedDict()
        self._names = itertools.count(-1, -1)
        self._origins = itertools.count()
        self._prefixes = PrefixTree()

    def reserve(self, sequence_id: int, *, tokens: int, limit: int) -> bool:
        """Make sure of places for `tokens`, with room to grow but never above `limit`. False when over the budget."""
        old = self._stretches.get(sequence_id)
        places = 0 if old is None else old.places
        if tokens <= places:
            return True
        free = self.capacity - self.held + places
        wished = min(limit, max(2 * places, _rounded_up(tokens)))
        least = min(limit, _rounded_up(tokens))
        granted = next((count for count in (wished, least, tokens) if count <= free), None)
        if granted is None:
            return False
        self._wake(granted - places)
        shape = self._shape
        size = (2, shape.layers, granted, shape.kv_heads, shape.head_size)
        new = torch.empty(size, dtype=self._dtype, device=self.device)
        if old is None:
            self._stretches[sequence_id] = _Stretch(new, computed_by(next(self._origins)))
        else:
            new[:, :, :places] = old.memory
            old.memory = new
        self.held += granted - places
        return True

    def reusable(self, adapter: str | None, tokens: Sequence[int]) -> int:
        """How many of the first tokens need not be computed; what holds them is kept longest from now on."""
        owner, count = self._prefixes.find(adapter, tokens)
        if owner in self._rests:
            self._rests.move_to_end(owner)
        return count

    def take_over(self, sequence_id: int, adapter: str | None, tokens: Sequence[int]) -> int:
        """Copy what is known of the beginning of `tokens` into a reserved stretch; how many tokens that was."""
        owner, count = self._prefixes.find(adapter, tokens)
        if count:
            source = self._rests[owner] if owner in self._rests else self._stretches[owner]
            stretch = self._stretches[sequence_id]
            stretch.memory[:, :, :count] = source.memory[:, :, :count]
            stretch.descent = clipped(source.descent, count) + stretch.descent[-1:]
        return count

    def learn(self, sequence_id: int, adapter: str | None, tokens: Sequence[int], count: int) -> None:
        """Say that the first `count` of a sequence's tokens are computed, so that others may take them over."""
        if self.reuse and count >= BLOCK:
            self._prefixes.extend(sequence_id, adapter, tokens, count)

    def free(self, sequence_id: int) -> None:
        """Give a sequence's places back at once; an unknown id is no error."""
        old = self._stretches.pop(sequence_id, None)
        if old is not None:
            self.held -= old.places
            self._prefixes.remove(sequence_id)

    def rest(self, sequence_id: int) -> None:
        """Give an ended sequence's places back when they are wanted; an unknown id is no error."""
        old = self._stretches.get(sequence_id)
        if old is None:
            return
        places = old.places
        if not self.reuse or places > self._most_resting:
            self.free(sequence_id)
            return
        del self._stretches[sequence_id]
        self.held -= places
        self.resting += places
        name = next(self._names)
        self._rests[name] = old
        self._prefixes.rename(sequence_id, name)
        while self.resting > self._most_resting:
            self._drop_eldest()

    def give_way(self, size: int) -> bool:
        """Drop what rests, the longest unused first, until `size` bytes of memory are free of it; whether any was."""
        before, place = self.resting, bytes_per_token(self._shape, dtype=self._dtype)
        while self._rests and (before - self.resting) * place < size:
            self._drop_eldest()
        return self.resting < before

    def extend(self, sequence_id: int, layer: int, *, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [T, kv_heads, head_size] at `start`; returns views of all so far [start + T, ...]."""
        memory = self._stretches[sequence_id].memory
        end = start + k.shape[0]
        keys, values = memory[0, layer, :end], memory[1, layer, :end]
        keys[start:] = k
        values[start:] = v
        return keys, values

    def places(self, sequence_id: int, place: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """For each layer where a token's key is written, and where its value [kv_heads, head_size]."""
        key, value = self._stretches[sequence_id].memory[:, :, place]
        return key.unbind(), value.unbind()

    def held_between(self, sequence_id: int, start: int, stop: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """For each layer the keys and the values of these places [1, kv_heads, stop - start, head_size]."""
        keys, values = self._stretches[sequence_id].memory[:, :, start:stop].transpose(2, 3)
        return keys.split(1), values.split(1)

    def descent(self, sequence_id: int, count: int) -> Descent:
        """Who computed the sequence's first `count` keys and values."""
        return clipped(self._stretches[sequence_id].descent, count)

    def _wake(self, places: int) -> None:
        """Drop what rests, the longest unused first, until so many more places can be held."""
        while self._rests and self.held + self.resting + places > self.capacity:
            self._drop_eldest()

    def _drop_eldest(self) -> None:
        name, stretch = self._rests.popitem(last=False)
        self.resting -= stretch.places
        self._prefixes.remove(name)


def _rounded_up(tokens: int) -> int:
    return -(-tokens // STEP) * STEP
