"""Which stretches of keys and values begin with the same numbers, and which of these are worth reading once a step.

A stretch is computed by one sequence from some place on and copied before that, perhaps from one that was copied
itself. Who computed which place is all that is known here: no tokens, no tensors. Equal tokens that two sequences
computed each for itself do not count as the same, for their numbers differ by rounding.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

# Keys that need not be read again, below which a call for the shared ones and the joining cost more than they save.
WORTH_SHARING = 384


class Span(NamedTuple):
    """Places before `end`, and after the span before it, hold what the stretch `origin` computed there."""

    origin: int
    end: int


# A stretch's spans in order of place. The same origin and place always mean the same numbers from the start to there.
Descent = tuple[Span, ...]


class Shared(NamedTuple):
    """Rows, ascending, whose first `length` keys and values are the same numbers."""

    rows: tuple[int, ...]
    length: int


def computed_by(origin: int) -> Descent:
    """The descent of a stretch of which nothing is copied."""
    return (Span(origin, sys.maxsize),)


def clipped(descent: Descent, count: int) -> Descent:
    """The descent of the first `count` places."""
    return tuple(
        Span(origin, min(end, count))
        for (origin, end), before in zip(descent, (0, *(span.end for span in descent)), strict=False)
        if before < count
    )


def worth_reading_once(rows: Sequence[Descent]) -> list[Shared]:
    """Groups of rows, each row in one at most, by how many keys need not be read again; few keys make no group.

    A row's descent ends where it must read alone.
    """
    left = set(range(len(rows)))
    found: list[Shared] = []
    while True:
        holders: dict[int, list[tuple[int, int]]] = {}
        for row in left:
            for origin, end in rows[row]:
                holders.setdefault(origin, []).append((end, row))
        best = max((_widest(some) for some in holders.values()), key=_saved, default=Shared((), 0))
        if _saved(best) < WORTH_SHARING:
            return found
        found.append(best)
        left -= set(best.rows)


def _widest(holders: list[tuple[int, int]]) -> Shared:
    """Of those who hold an origin's places up to an end, the group that saves most."""
    by_end = sorted(holders, reverse=True)
    groups = (Shared(tuple(row for _, row in by_end[: place + 1]), end) for place, (end, _) in enumerate(by_end))
    rows, length = max(groups, key=_saved)
    return Shared(tuple(sorted(rows)), length)


def _saved(group: Shared) -> int:
    return (len(group.rows) - 1) * group.length
