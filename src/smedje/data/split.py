"""A seeded split of rows into training and validation. Knows numbers only."""

from collections.abc import Hashable, Sequence
from hashlib import blake2b


def split_rows(
    rows: int, *, seed: int, validation_fraction: float = 0.2, groups: Sequence[Hashable] | None = None
) -> tuple[list[int], list[int]]:
    """Split the numbers 0..rows-1 into training rows and validation rows, both rising.

    groups: a key for each row; rows with the same key stay on one side, so that a copy of a training conversation never
    measures what was learned from it. Validation gets the whole groups that come as near to
    `validation_fraction * rows` rows as their sizes allow without going over, at least one group where there are two.
    The order of groups is that of BLAKE2b-64 of "split:seed:i", i the group's first row: a pure function of the seed.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, found {validation_fraction}")
    members: dict[Hashable, list[int]] = {}
    for row in range(rows):
        members.setdefault(row if groups is None else groups[row], []).append(row)
    wanted = validation_fraction * rows
    held: set[int] = set()
    if wanted > 0 and len(members) > 1:
        order = sorted(members, key=lambda name: place_of(seed, members[name][0]))
        for name in order:
            if len(held) + len(members[name]) <= wanted:
                held.update(members[name])
        if not held:
            held.update(members[min(order, key=lambda name: len(members[name]))])
    return [row for row in range(rows) if row not in held], sorted(held)


def place_of(seed: int, row: int) -> bytes:
    """Where row `row` stands among the others: BLAKE2b-64 of "split:seed:row"."""
    return blake2b(f"split:{seed}:{row}".encode(), digest_size=8).digest()
