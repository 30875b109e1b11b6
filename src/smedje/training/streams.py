"""A step's flat streams computed side by side, one core each, with the same sums as one after the other.

Knows how rows are divided among cores and how results come back in order; products over many small pieces lose a
sixth of two cores when each is split between them. Refuses to know losses and networks: the caller gives a function of
one stream.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

SHORTEST_STREAM = 384  # tokens; shorter ones do not pay for reading all weights once more
# Of all cores that one stream keeps busy: its products are split, what lies between them hardly is (measured on two).
SHARE_OF_CORES = 0.6

Result = TypeVar("Result")


def a_stream_each(own: int, shared: int, *, cores: int) -> bool:
    """Whether a stream for each core is quicker than all cores on one: own tokens are divided, shared ones repeated."""
    apart, together = shared + own / cores, (shared + own) / (cores * SHARE_OF_CORES)
    return cores > 1 and apart <= together and own >= cores * SHORTEST_STREAM


def even_groups(lengths: Sequence[int], *, token_budget: int, multiple: int) -> list[list[int]]:
    """Groups of places in `lengths`, as many as a multiple of `multiple`, of about equal sums up to `token_budget`.

    Longest first, each into the group with the least so far. A row above the budget has a group of its own. Fewer rows
    than `multiple` give a group each. The same lengths always give the same groups.
    """
    places = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    count = max(multiple, -(-sum(lengths) // max(1, token_budget * multiple)) * multiple)
    while True:
        groups: list[list[int]] = [[] for _ in range(min(count, len(places)))]
        sums = [0] * len(groups)
        for place in places:
            least = min(range(len(groups)), key=lambda group: (sums[group], group))
            groups[least].append(place)
            sums[least] += lengths[place]
        if all(total <= token_budget or len(group) == 1 for group, total in zip(groups, sums, strict=True)):
            return sorted(sorted(group) for group in groups)
        count += multiple


def side_by_side(work: Callable[[list[int]], Result], parts: Sequence[list[int]], *, cores: int) -> Iterator[Result]:
    """`work` of every part, in order: one after the other on all threads, or `cores` at a time on one thread each.

    `work` must not depend on what runs beside it. Its gradient and inference modes are its own to set.
    """
    if cores == 1 or len(parts) < cores:
        yield from map(work, parts)
        return
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(work, parts)
