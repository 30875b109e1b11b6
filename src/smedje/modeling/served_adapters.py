"""Finished adapters under inference: several in one batch, each on its own rows, those of equal shapes side by side.

Knows how a finished adapter lies in memory, banks of them and the products; refuses to know training (lora.py), files
(adapter.py), who is served and when an adapter is given up.
"""

import heapq
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from smedje.modeling.config import Site, Slot
from smedje.modeling.dora import site_gains
from smedje.modeling.lora import AdapterConfig, adapted_slots, check_names, row_gains, tensor_names, weight_names
from smedje.modeling.low_rank import spread
from smedje.modeling.transformer import CausalDecoder

# An adapter with more rows than this in a step is quicker by itself: the others would be padded to as many.
BATCHED_ROWS = 8

Factors = tuple[Tensor, Tensor]


class ServedAdapter:
    """A finished adapter laid out for a decoder's fused sites, in the decoder's type and on its device.

    Per site: A of all parts side by side [in, n * rank], and B [n * rank, out] with each part in its own rows and
    columns, already scaled, so that a site costs two thin products. With DoRA B carries the gains too, and `gains` has
    for each site what the base model's output is multiplied with and what is added, [out] each (None without a bias).
    head: a classifier's [K, H] (classifier.py), None for a chat model. bank, place: where it lies beside others.
    """

    def __init__(
        self,
        decoder: CausalDecoder,
        weights: Mapping[str, Tensor],
        config: AdapterConfig,
        *,
        head: Tensor | None = None,
    ) -> None:
        self.head = head
        self.bank: AdapterBank | None = None
        self.place = 0
        slots = adapted_slots(decoder.slots, config)
        check_names(tensor_names(slots, config), weights)
        self.gains: dict[Site, tuple[Tensor, Tensor | None]] = {}
        grouped: dict[Site, list[Slot]] = {}
        for slot in slots:
            grouped.setdefault(slot.site, []).append(slot)
        self.factors: dict[Site, Factors] = {}
        for site, parts in grouped.items():
            base = decoder.weight(site)
            ups = [weights[weight_names(slot)[1]].to(base.device) for slot in parts]
            spans = [(slot.start, slot.stop) for slot in parts]
            up = spread(ups, spans, torch.empty(0, base.shape[0], device=base.device))
            down = torch.cat([weights[weight_names(slot)[0]] for slot in parts])
            if config.dora:
                found = [(slot, row_gains(decoder, slot, weights, config)) for slot in parts]
                gain, bias = site_gains(found, base.shape[0]), decoder.bias(site)
                shift = None if bias is None else (bias.float() * (1 - gain)).to(decoder.rows)
                self.gains[site] = (gain.to(decoder.rows), shift)
                up = up * gain[:, None]
            self.factors[site] = (
                down.to(base.device, decoder.rows).T.contiguous(),
                (up * config.scale).to(decoder.rows).T.contiguous(),
            )


class AdapterBank:
    """Places for adapters whose factors have equal shapes, so that one batched product serves rows of several.

    Memory is asked for at once and, on a CPU, taken up place by place. No DoRA: its gains are applied row by row.
    Not safe to place and give up from several threads at once; products may run meanwhile.
    """

    def __init__(self, like: ServedAdapter, *, places: int) -> None:
        self._places = places
        self._free = list(range(places))
        self.factors: dict[Site, Factors] = {
            site: (down.new_empty(places, *down.shape), up.new_empty(places, *up.shape))
            for site, (down, up) in like.factors.items()
        }

    @property
    def empty(self) -> bool:
        """Whether no adapter lies here."""
        return len(self._free) == self._places

    def take(self, adapter: ServedAdapter) -> bool:
        """Move an adapter's factors in, to be read where they were; False when it does not fit or nothing is free."""
        if not self._free or adapter.gains or _shapes(adapter.factors, 0) != _shapes(self.factors, 1):
            return False
        adapter.bank, adapter.place = self, heapq.heappop(self._free)
        for site, factors in adapter.factors.items():
            down, up = (whole[adapter.place].copy_(own) for whole, own in zip(self.factors[site], factors, strict=True))
            adapter.factors[site] = (down, up)
        return True

    def give_up(self, adapter: ServedAdapter) -> None:
        """Free the place of an adapter that no product will use any more."""
        assert adapter.bank is self
        heapq.heappush(self._free, adapter.place)


class SegmentedLora:
    """A LowRank for serving: several adapters in one batch, each on its own rows; other rows get the base model.

    segments: pairs of an adapter and the int64 indices of its rows [n]. A row appears at most once. No gradients.
    Adapters of one bank with few rows each are multiplied together, the others one after another.
    """

    def __init__(self, segments: Sequence[tuple[ServedAdapter, Tensor]]) -> None:
        alone = []
        few: dict[int, list[tuple[ServedAdapter, Tensor]]] = {}
        for adapter, rows in segments:
            if adapter.bank is not None and 0 < rows.numel() <= BATCHED_ROWS:
                few.setdefault(id(adapter.bank), []).append((adapter, rows))
            elif rows.numel():
                alone.append((adapter, rows))
        self._together = []
        for group in few.values():
            places = [adapter.place for adapter, _ in group]
            # Places between them that have no rows are multiplied for nothing.
            if len(group) > 1 and 2 * len(group) > max(places) - min(places):
                self._together.append(_Together(group))
            else:
                alone += group
        self._alone = tuple((adapter, _as_slice(rows)) for adapter, rows in alone)

    def __call__(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
        for adapter, rows in self._alone:
            factors = adapter.factors.get(site)
            if factors is None:
                continue
            down, up = factors
            if site in adapter.gains:
                gain, shift = adapter.gains[site]
                y[rows] = y[rows] * gain if shift is None else torch.addcmul(shift, y[rows], gain)
            if isinstance(rows, slice):
                y[rows].addmm_(x[rows] @ down, up)
            else:
                y.index_add_(0, rows, (x[rows] @ down) @ up)
        for group in self._together:
            group.add(site, x, y)
        return y


class _Together:
    """Adapters of one bank, their rows padded to equal counts: x [places, most, in] times A, times B, back to y.

    Rows that already lie in that order, most of each adapter and none between, are read and written where they are.
    """

    def __init__(self, group: Sequence[tuple[ServedAdapter, Tensor]]) -> None:
        bank = group[0][0].bank
        assert bank is not None
        self._factors = bank.factors
        group = sorted(group, key=lambda segment: segment[0].place)
        places = [adapter.place for adapter, _ in group]
        self._first, self._count = places[0], places[-1] - places[0] + 1
        self._most = max(rows.numel() for _, rows in group)
        self._rows = torch.cat([rows for _, rows in group])
        full = self._rows.numel() == self._count * self._most
        span = _as_slice(self._rows) if full else None
        self._span = span if isinstance(span, slice) else None
        # Any row will do for padding: what is computed of it is left out afterwards.
        gathered = self._rows.new_zeros(self._count, self._most)
        kept = []
        for adapter, rows in group:
            place = adapter.place - self._first
            gathered[place, : rows.numel()] = rows
            kept.append(place * self._most + torch.arange(rows.numel(), device=rows.device))
        self._gathered = gathered.flatten()
        self._kept = None if full else torch.cat(kept)

    def add(self, site: Site, x: Tensor, y: Tensor) -> None:
        """y[rows] += x[rows] A B of each row's own adapter."""
        factors = self._factors.get(site)
        if factors is None:
            return
        down, up = (whole.narrow(0, self._first, self._count) for whole in factors)
        size = (self._count, self._most, -1)
        if self._span is not None:
            y[self._span].view(size).baddbmm_(torch.bmm(x[self._span].reshape(size), down), up)
            return
        added = torch.bmm(torch.bmm(x.index_select(0, self._gathered).view(size), down), up).flatten(0, 1)
        y.index_add_(0, self._rows, added if self._kept is None else added.index_select(0, self._kept))


def _shapes(factors: Mapping[Site, Factors], skipped: int) -> dict[Site, tuple[torch.Size, torch.Size]]:
    return {site: (down.shape[skipped:], up.shape[skipped:]) for site, (down, up) in factors.items()}


def _as_slice(rows: Tensor) -> slice | Tensor:
    """Neighbouring rows in order as a slice, which needs no gather."""
    first, count = int(rows[0]), rows.numel()
    if torch.equal(rows, torch.arange(first, first + count, device=rows.device)):
        return slice(first, first + count)
    return rows
