"""Rows of an encoded dataset to one flat stream in which a shared beginning stands once: a forest of segments.

Exact by construction: a token's id, position and everything before it are the same as in the row alone. Tokens that
several rows share and that carry labels are labelled once for each row. Knows no tensors and no attention.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from smedje.data.batches import FlatBatch
from smedje.data.encode import EncodedDataset

SHORTEST_SHARED = 8  # tokens: a shorter shared beginning costs more in calls than it saves in products


@dataclass(frozen=True, kw_only=True)
class Forest:
    """A stream with shared beginnings.

    batch: tokens, positions and labels; `lengths` are the segments' lengths in stream order, and a row may appear
    several times among `target_rows`, once for each label. segments: (start, stop, end) as modeling.tree_attention
    wants them. rows: number of rows of the dataset. unshared: tokens the stream would have without sharing.
    """

    batch: FlatBatch
    segments: tuple[tuple[int, int, int], ...]
    rows: int
    unshared: int


def forest(dataset: EncodedDataset, rows: Sequence[int]) -> Forest:
    """The stream of these rows. As in `flat_batch`, a row's last token is only ever a target and has no place."""
    documents = sorted((tuple(tokens.tolist()), weights) for tokens, weights in (dataset.example(row) for row in rows))
    builder = _Builder([(ids[:-1], ids, weights) for ids, weights in documents])
    builder.lay(0, len(documents), 0)
    return Forest(
        batch=builder.batch(),
        segments=tuple(builder.segments),
        rows=len(rows),
        unshared=sum(len(ids) - 1 for ids, _ in documents),
    )


def shared_tokens(dataset: EncodedDataset, rows: Sequence[int]) -> int:
    """How many tokens all of these rows begin with, their last tokens left out; 0 for a single row."""
    if len(rows) < 2:
        return 0
    ids = [dataset.example(row)[0].tolist()[:-1] for row in rows]
    return _common(min(ids), max(ids), 0)


Document = tuple[Sequence[int], Sequence[int], Sequence[float]]


class _Builder:
    """Lays sorted documents depth first. Sorted, so that documents with a common beginning are neighbours."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = documents
        self.segments: list[tuple[int, int, int]] = []
        self._tokens, self._positions = array("q"), array("q")
        self._target_rows, self._targets, self._target_weights = array("q"), array("q"), array("f")

    def lay(self, first: int, last: int, depth: int) -> None:
        """Lay documents [first, last), which share `depth` tokens that are laid already."""
        while first < last:
            group, shared = self._group(first, last, depth)
            ids = self._documents[first][0]
            start = len(self._tokens)
            place = len(self.segments)
            if shared > depth:
                self.segments.append((start, start + shared - depth, 0))
                self._tokens.extend(ids[depth:shared])
                self._positions.extend(range(depth, shared))
                for document in range(first, group):
                    self._label(document, depth, shared, start - depth)
            if group - first > 1:
                self.lay_children(first, group, shared)
            if shared > depth:
                begin, stop, _ = self.segments[place]
                self.segments[place] = (begin, stop, len(self._tokens))
            first = group

    def lay_children(self, first: int, last: int, depth: int) -> None:
        """Documents that end where their shared beginning ends have nothing more to lay; they sort first."""
        while first < last and len(self._documents[first][0]) == depth:
            first += 1
        self.lay(first, last, depth)

    def _group(self, first: int, last: int, depth: int) -> tuple[int, int]:
        """The documents from `first` on that share enough beyond `depth`, and how far they all agree."""
        ids = self._documents[first][0]
        group, shared = first + 1, len(ids)
        while group < last:
            common = _common(ids, self._documents[group][0], depth)
            if common - depth < SHORTEST_SHARED:
                break
            shared = min(shared, common)
            group += 1
        return group, shared

    def _label(self, document: int, start: int, stop: int, shift: int) -> None:
        """Labels of one document for its tokens at places [start, stop): each predicts the next."""
        _, ids, weights = self._documents[document]
        for place in range(start, stop):
            if weights[place + 1] > 0:
                self._target_rows.append(place + shift)
                self._targets.append(ids[place + 1])
                self._target_weights.append(weights[place + 1])

    def batch(self) -> FlatBatch:
        """What has been laid, with labels in stream order."""
        order = sorted(range(len(self._target_rows)), key=lambda i: (self._target_rows[i], self._targets[i]))
        return FlatBatch(
            tokens=self._tokens,
            positions=self._positions,
            lengths=[stop - start for start, stop, _ in self.segments],
            target_rows=array("q", (self._target_rows[i] for i in order)),
            targets=array("q", (self._targets[i] for i in order)),
            target_weights=array("f", (self._target_weights[i] for i in order)),
        )


def _common(one: Sequence[int], other: Sequence[int], start: int) -> int:
    """How many tokens agree from the beginning, given that `start` do."""
    end = min(len(one), len(other))
    place = start
    while place < end and one[place] == other[place]:
        place += 1
    return place
