"""Keys and values of running sequences, one growing stretch of memory each, under one budget.

Knows places in tokens; knows nothing of who runs or why. The budget counts the places held; while a stretch grows, the
old and the new one stand side by side for the moment of the copy.
"""

import torch
from torch import Tensor

from smedje.modeling.config import DecoderShape

# A stretch grows to twice its size; where the budget forbids that, by this many places.
STEP = 64


def bytes_per_token(shape: DecoderShape, *, dtype: torch.dtype) -> int:
    """Memory of one token's keys and values in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * dtype.itemsize


class KVCache:
    """Places for `capacity` tokens; for each sequence one tensor [2 (k, v), layers, places, kv_heads, head_size]."""

    def __init__(self, shape: DecoderShape, *, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.capacity = capacity
        self.held = 0
        self._shape = shape
        self._dtype = dtype
        self._device = device
        self._stretches: dict[int, Tensor] = {}

    def reserve(self, sequence_id: int, *, tokens: int, limit: int) -> bool:
        """Make sure of places for `tokens`, with room to grow but never above `limit`. False when over the budget."""
        old = self._stretches.get(sequence_id)
        places = 0 if old is None else old.shape[2]
        if tokens <= places:
            return True
        free = self.capacity - self.held + places
        wished = min(limit, max(2 * places, _rounded_up(tokens)))
        least = min(limit, _rounded_up(tokens))
        granted = next((count for count in (wished, least, tokens) if count <= free), None)
        if granted is None:
            return False
        shape = self._shape
        size = (2, shape.layers, granted, shape.kv_heads, shape.head_size)
        new = torch.empty(size, dtype=self._dtype, device=self._device)
        if old is not None:
            new[:, :, :places] = old
        self._stretches[sequence_id] = new
        self.held += granted - places
        return True

    def free(self, sequence_id: int) -> None:
        """Give a sequence's places back at once; an unknown id is no error."""
        old = self._stretches.pop(sequence_id, None)
        if old is not None:
            self.held -= old.shape[2]

    def extend(self, sequence_id: int, layer: int, *, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [T, kv_heads, head_size] at `start`; returns views of all so far [start + T, ...]."""
        stretch = self._stretches[sequence_id]
        end = start + k.shape[0]
        keys, values = stretch[0, layer, :end], stretch[1, layer, :end]
        keys[start:] = k
        values[start:] = v
        return keys, values


def _rounded_up(tokens: int) -> int:
    return -(-tokens // STEP) * STEP
