"""Rows of an encoded dataset to flat batches, in a seeded order. Knows numbers only; training makes tensors of them.

Everything here is a pure function: what a step trains depends on (seed, epoch, step) and the data, on nothing else, so
an interrupted run needs to keep only two counters. The order is made with BLAKE2b and not with Python's `random`, whose
shuffle may change between versions.
"""

from __future__ import annotations  # Python 3.11 cannot subscript array.array

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from smedje.data.encode import EncodedDataset


@dataclass(frozen=True)
class FlatBatch:
    """D documents as one stream of T rows without padding, and the R rows that have a label.

    tokens: T ids. positions: T numbers, from 0 in each document. lengths: D numbers >= 1 with sum T.
    target_rows: R rising places in the stream; the row predicts the token after it. targets: R ids to predict.
    target_weights: R numbers > 0. A document's last token is only ever a target, so it has no row.
    """

    tokens: array[int]
    positions: array[int]
    lengths: list[int]
    target_rows: array[int]
    targets: array[int]
    target_weights: array[float]


def epoch_order(rows: int, *, seed: int, epoch: int) -> list[int]:
    """The numbers 0..rows-1 in the order in which epoch `epoch` (from 0) visits them.

    Row i stands where BLAKE2b-64 of the text "seed:epoch:i" puts it among the others.
    """
    start = blake2b(f"{seed}:{epoch}:".encode(), digest_size=8)

    def key(row: int) -> bytes:
        digest = start.copy()
        digest.update(b"%d" % row)
        return digest.digest()

    return sorted(range(rows), key=key)


def steps_in_epoch(rows: int, *, batch_size: int) -> int:
    """Number of optimizer steps in which every row is seen once; the last one may be smaller."""
    return -(-rows // batch_size)


def step_rows(order: Sequence[int], *, batch_size: int, step: int) -> list[int]:
    """The rows of step `step` (from 0) of an epoch with this order; the last step has what is left."""
    return list(order[step * batch_size : (step + 1) * batch_size])


def micro_batches(lengths: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Split a step into streams: groups of places in `lengths`, each with a sum of at most `token_budget`.

    First fit, longest first; a single example above the budget gets a group of its own. Every place stands in one
    group, groups and places in them rise, so the same lengths always give the same groups.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        length = lengths[place]
        fit = next((number for number, left in enumerate(room) if length <= left), None)
        if fit is None:
            groups.append([place])
            room.append(token_budget - length)
        else:
            groups[fit].append(place)
            room[fit] -= length
    return sorted(sorted(group) for group in groups)


def flat_batch(dataset: EncodedDataset, rows: Sequence[int]) -> FlatBatch:
    """The stream of these rows. A row of n tokens gives n - 1 places: its last token only stands among the targets."""
    tokens, positions, lengths = array("q"), array("q"), []
    target_rows, targets, target_weights = array("q"), array("q"), array("f")
    for row in rows:
        stored, weights = dataset.example(row)
        ids = stored.tolist()
        start = len(tokens)
        if len(ids) < 2:
            continue
        tokens.extend(ids[:-1])
        positions.extend(range(len(ids) - 1))
        lengths.append(len(ids) - 1)
        labelled = [place for place in range(1, len(ids)) if weights[place] > 0]
        target_rows.extend(start + place - 1 for place in labelled)
        targets.extend(ids[place] for place in labelled)
        target_weights.extend(weights[place] for place in labelled)
    return FlatBatch(tokens, positions, lengths, target_rows, targets, target_weights)
