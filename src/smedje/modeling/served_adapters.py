"""Finished adapters under inference: several in one batch, each on its own rows, those of equal shapes side by side.

Knows how a finished adapter lies in memory, banks of them and the products; refuses to know training (lora.py), files
(adapter.py), who is served and when an adapter is given up.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smedje.modeling.config import Site, Slot
from smedje.modeling.dora import site_gains
from smedje.modeling.lora import AdapterConfig, adapted_slots, check_names, row_gains, tensor_names, weight_names
from smedje.modeling.products import one_core
from smedje.modeling.transformer import CausalDecoder

# An adapter with more rows than this in a step is quicker by itself: the others would be padded to as many.
BATCHED_ROWS = 8
# Products this thin are over before a second core is awake; up to so many rows of a step one core takes them alone.
ROWS_ON_ONE_CORE = 128

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A site's two factors without their numbers: [in, n * rank] and [n * rank, out], their type and their device."""

    inner: tuple[int, int]
    outer: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def empty(self, *places: int) -> Factors:
        """Memory for one pair, or for as many as places says, with nothing in it."""
        inner, outer = (
            torch.empty(*places, *shape, dtype=self.dtype, device=self.device) for shape in (self.inner, self.outer)
        )
        return inner, outer


class ServedAdapter:
    """A finished adapter laid out for a decoder's fused sites, in the decoder's type and on its device.

    Per site: A of all parts side by side [in, n * rank], and B [n * rank, out] with each part in its own rows and
    columns, already scaled, so that a site costs two thin products. With DoRA B carries the gains too, and `gains` has
    for each site what the base model's output is multiplied with and what is added, [out] each (None without a bias).
    head: a classifier's [K, H] (classifier.py), None for a chat model. bank, place: where it lies beside others.
    settled: False leaves the weights as they were read until a bank lays them out, in one pass over their numbers.
    """

    def __init__(
        self,
        decoder: CausalDecoder,
        weights: Mapping[str, Tensor],
        config: AdapterConfig,
        *,
        head: Tensor | None = None,
        settled: bool = True,
    ) -> None:
        self.head = head
        self.bank: AdapterBank | None = None
        self.place = 0
        slots = adapted_slots(decoder.slots, config)
        check_names(tensor_names(slots, config), weights)
        self.gains: dict[Site, tuple[Tensor, Tensor | None]] = {}
        self.factors: dict[Site, Factors] = {}
        self.outlines: dict[Site, Outline] = {}
        self._scale = config.scale
        self._read: dict[Site, list[tuple[Slot, Tensor, Tensor]]] = {}
        for slot in slots:
            a, b = (weights[name] for name in weight_names(slot))
            self._read.setdefault(slot.site, []).append((slot, a, b))
        for site, parts in self._read.items():
            base = decoder.weight(site)
            if config.dora:
                found = [(slot, row_gains(decoder, slot, weights, config)) for slot, _, _ in parts]
                gain, bias = site_gains(found, base.shape[0]), decoder.bias(site)
                shift = None if bias is None else (bias.float() * (1 - gain)).to(decoder.rows)
                self.gains[site] = (gain.to(decoder.rows), shift)
                parts[:] = [(slot, a, b.to(base.device) * gain[slot.start : slot.stop, None]) for slot, a, b in parts]
            width = sum(a.shape[0] for _, a, _ in parts)
            self.outlines[site] = Outline(
                inner=(parts[0][1].shape[1], width),
                outer=(width, base.shape[0]),
                dtype=decoder.rows,
                device=base.device,
            )
        if settled:
            self.lay_out({site: outline.empty() for site, outline in self.outlines.items()})

    def lay_out(self, places: Mapping[Site, Factors]) -> None:
        """Write both factors of every site into these places and keep them as the adapter's; once."""
        assert self._read, "the weights as they were read are gone once they are laid out"
        for site, parts in self._read.items():
            down, up = self.factors[site] = places[site]
            if any((slot.start, slot.stop) != (0, up.shape[1]) for slot, _, _ in parts):
                up.zero_()
            first = 0
            for slot, a, b in parts:
                last = first + a.shape[0]
                down[:, first:last].copy_(a.T)
                torch.mul(b.T.to(up.device), self._scale, out=up[first:last, slot.start : slot.stop])
                first = last
        self._read = {}


@torch.no_grad()
def put_into(decoder: CausalDecoder, adapter: ServedAdapter) -> None:
    """Add the adapter to a decoder's plain weights in place: W + B A, with DoRA the gains times W first.

    The decoder then says without it what the one that the adapter was made for says with it, to rounding.
    """
    for site, (down, up) in adapter.factors.items():
        weight = decoder.weight(site)
        if site in adapter.gains:
            weight.mul_(adapter.gains[site][0][:, None])
        weight.addmm_(up.T, down.T)


class AdapterBank:
    """Places for adapters whose factors have equal shapes, so that one batched product serves rows of several.

    Memory is asked for at once and, on a CPU, taken up place by place. No DoRA: its gains are applied row by row.
    Not safe to place and give up from several threads at once; products may run meanwhile.
    """

    def __init__(self, like: ServedAdapter, *, places: int) -> None:
        self._places = places
        self._free = list(range(places))
        self._outlines = like.outlines
        self.factors: dict[Site, Factors] = {site: one.empty(places) for site, one in like.outlines.items()}

    @property
    def empty(self) -> bool:
        """Whether no adapter lies here."""
        return len(self._free) == self._places

    def take(self, adapter: ServedAdapter) -> bool:
        """Lay an adapter that is not settled out here; False when it does not fit or nothing is free."""
        if not self._free or adapter.gains or adapter.outlines != self._outlines:
            return False
        adapter.bank, adapter.place = self, heapq.heappop(self._free)
        adapter.lay_out({site: (down[adapter.place], up[adapter.place]) for site, (down, up) in self.factors.items()})
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
        if len(y) > ROWS_ON_ONE_CORE or not y.is_cpu:
            return self._added(site, x, y)
        with one_core():
            return self._added(site, x, y)

    def _added(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
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


def _as_slice(rows: Tensor) -> slice | Tensor:
    """Neighbouring rows in order as a slice, which needs no gather."""
    first, count = int(rows[0]), rows.numel()
    if torch.equal(rows, torch.arange(first, first + count, device=rows.device)):
        return slice(first, first + count)
    return rows
