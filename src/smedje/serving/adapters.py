"""Adapters in memory, by their place in object storage. Knows which are loaded, in use and longest unused; trains none.

An adapter is loaded on the thread of the request that wants it, so that running completions go on meanwhile.
"""

import threading
from collections import OrderedDict
from pathlib import Path

from smedje.errors import InvalidRequest, NotFound
from smedje.modeling.adapter import load_adapter
from smedje.modeling.classifier import load_head
from smedje.modeling.served_adapters import AdapterBank, ServedAdapter
from smedje.modeling.transformer import CausalDecoder
from smedje.objects.store import Objects

# Places of a bank: its memory is asked for at once.
BANK_PLACES = 8


class _Entry:
    """An adapter that is, or is being, loaded. pins: requests that use it."""

    def __init__(self) -> None:
        self.loading = threading.Lock()
        self.adapter: ServedAdapter | None = None
        self.pins = 0


class AdapterCache:
    """At most `capacity` adapters, least recently used out first; one in use always stays, even above the capacity.

    objects: where adapters are. folder: where those from a bucket are copied to.
    """

    def __init__(self, model: CausalDecoder, objects: Objects, *, folder: Path, capacity: int) -> None:
        self._model = model
        self._objects = objects
        self._folder = folder
        self._capacity = capacity
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._banks: list[AdapterBank] = []

    def __len__(self) -> int:
        return len(self._entries)

    def acquire(self, key: str) -> None:
        """Load the adapter under prefix `key` unless it is loaded, and keep it until `release`. From any thread.

        Raises NotFound when storage has no such adapter, InvalidRequest when it does not fit the base model.
        """
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            entry.pins += 1
            self._entries.move_to_end(key)
        try:
            with entry.loading:
                if entry.adapter is None:
                    loaded = self._load(key)
                    with self._lock:
                        self._place(loaded)
                    entry.adapter = loaded
        except BaseException:
            self.release(key)
            raise
        with self._lock:
            self._evict()

    def release(self, key: str) -> None:
        """End one use of an acquired adapter. It stays loaded while there is room."""
        with self._lock:
            entry = self._entries[key]
            entry.pins -= 1
            if entry.pins == 0 and entry.adapter is None:
                del self._entries[key]
            self._evict()

    def get(self, key: str) -> ServedAdapter:
        """An acquired adapter."""
        adapter = self._entries[key].adapter
        assert adapter is not None, "acquire comes before get"
        return adapter

    def holds(self, key: str, adapter: ServedAdapter) -> bool:
        """Whether this very adapter is still the one that is loaded."""
        entry = self._entries.get(key)
        return entry is not None and entry.adapter is adapter

    def order(self, key: str | None) -> tuple[int, int, str]:
        """What rows should be sorted by: those of adapters that lie beside each other become neighbours."""
        adapter = None if key is None else self.get(key)
        if adapter is None or adapter.bank is None:
            return (-1, 0, key or "")
        return (self._banks.index(adapter.bank), adapter.place, "")

    def _load(self, key: str) -> ServedAdapter:
        try:
            folder = self._objects.local_folder(key, self._folder)
        except NotFound as missing:
            raise NotFound(f"There is no adapter {key}.", code="adapter_not_found", param="model") from missing
        classifier = load_head(folder)
        weights, config = load_adapter(folder)
        head = classifier[0] if classifier else None
        # Without DoRA a bank will lay it out.
        adapter = ServedAdapter(self._model, weights, config, head=head, settled=config.dora)
        if adapter.head is not None and adapter.head.shape[1] != self._model.shape.hidden_size:
            raise InvalidRequest(f"The classifier {key} does not fit this base model.", code="invalid_adapter")
        return adapter

    def _place(self, adapter: ServedAdapter) -> None:
        """Lay an adapter beside others of its shapes, in a new bank where no bank has room. DoRA stays by itself."""
        if adapter.gains or any(bank.take(adapter) for bank in self._banks):
            return
        bank = AdapterBank(adapter, places=BANK_PLACES)
        bank.take(adapter)
        self._banks.append(bank)

    def _evict(self) -> None:
        unused = [key for key, entry in self._entries.items() if entry.pins == 0]
        for key in unused[: max(0, len(self._entries) - self._capacity)]:
            adapter = self._entries.pop(key).adapter
            if adapter is not None and adapter.bank is not None:
                adapter.bank.give_up(adapter)
                self._banks = [bank for bank in self._banks if not bank.empty]
