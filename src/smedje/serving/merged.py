"""One adapter inside the weights, for as long as it is asked alone: W + B A in place of W and two thin products.

Knows when a copy of the base model's linears is worth its memory and its making, and when it is given up. A copy is
made on a thread of its own beside running steps, from the model folder's file again: packed weights cannot be read.
Refuses weights in fewer bits, where an adapter's small numbers would be rounded away.
"""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from smedje.modeling.load import load_decoder
from smedje.modeling.served_adapters import ServedAdapter, put_into
from smedje.modeling.transformer import CausalDecoder, Decoder
from smedje.objects.machine import free_memory
from smedje.serving.adapters import AdapterCache

# Steps of one adapter alone before a copy is made. Making one takes about as long as so many steps gain.
PATIENCE = 100
# Share of the free memory that a whole plain model may take; packing it may take as much again, keys and values half.
MEMORY_SHARE = 0.25


class _Copy(NamedTuple):
    """A decoder with an adapter in its weights."""

    key: str
    adapter: ServedAdapter
    decoder: Decoder


class Merging:
    """At most one copy at a time. All but making it belongs to the thread of the engine's steps.

    model: the resident decoder in fp32, packed; a copy shares its embedding, norms and head. folder, weights: where it
    was loaded from. patience: steps of one adapter alone before its copy is made. memory_share: what of the free
    memory the plain model may take. steps: steps that a copy computed.
    """

    def __init__(
        self,
        model: Decoder,
        adapters: AdapterCache,
        *,
        folder: Path,
        weights: Path | None = None,
        patience: int = PATIENCE,
        memory_share: float = MEMORY_SHARE,
    ) -> None:
        self.steps = 0
        self._model = model
        self._adapters = adapters
        self._folder = folder
        self._weights = weights
        self._patience = patience
        self._memory_share = memory_share
        self._alone: str | None = None
        self._streak = 0
        self._copy: _Copy | None = None
        self._making: Future[_Copy] | None = None
        self._maker = ThreadPoolExecutor(1, "merging", torch.set_num_threads, (1,))

    @property
    def holds(self) -> str | None:
        """The adapter that the copy is of, None while there is none."""
        return None if self._copy is None else self._copy.key

    def decoder_for(self, adapters: Iterable[str | None]) -> CausalDecoder | None:
        """What computes a step whose rows have these adapters without adding them; None: the usual way.

        Call it once a step: it counts them, and begins and ends copies.
        """
        wanted = set(adapters)
        self._take_made()
        self._count(wanted)
        copy = self._copy
        if copy is None or wanted != {copy.key}:
            return None
        self.steps += 1
        return copy.decoder

    def give_way(self) -> bool:
        """Drop the copy for others who need its memory; whether there was one."""
        had, self._copy, self._streak = self._copy is not None, None, 0
        return had

    def _take_made(self) -> None:
        if self._making is not None and self._making.done():
            made, self._making = self._making, None
            failed = made.exception()
            if failed is None:
                self._copy = made.result()
            else:
                print(f"no copy of the weights with the adapter in them was made: {failed}", flush=True)
        if self._copy is not None and not self._adapters.holds(self._copy.key, self._copy.adapter):
            self._copy = None

    def _count(self, wanted: set[str | None]) -> None:
        """Whoever has had all of the last steps, the base model too, ends the copy of another."""
        if len(wanted) > 1:
            self._streak = 0
            return
        (alone,) = wanted
        self._streak = self._streak + 1 if alone == self._alone else 1
        self._alone = alone
        if self._streak % self._patience or self._making is not None or self.holds == alone:
            return
        self._copy = None
        if alone is not None and bytes_to_make(self._model) <= free_memory() * self._memory_share:
            self._adapters.acquire(alone)  # it is in use, so this loads nothing; the maker releases it
            self._making = self._maker.submit(self._make, alone)

    def _make(self, key: str) -> _Copy:
        try:
            adapter = self._adapters.get(key)
            decoder = load_decoder(self._folder, weights=self._weights)
            assert isinstance(decoder, Decoder)
            put_into(decoder, adapter)
            decoder.pack_beside(self._model)
            return _Copy(key, adapter, decoder)
        finally:
            self._adapters.release(key)


def bytes_to_make(model: Decoder) -> int:
    """What a copy takes while it is made: the whole model, plain, in fp32. Later it is the linears alone."""
    shape = model.shape
    tables = shape.vocab_size * shape.hidden_size * (1 if model.config.tie_embeddings else 2)
    return 4 * (tables + sum(model.weight(site).shape.numel() for site in {slot.site for slot in model.slots}))
