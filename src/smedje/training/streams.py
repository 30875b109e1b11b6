"""A step's flat streams computed side by side, one core each, with the same sums as one after the other.

Knows how results come back in order; products over many small pieces lose a sixth of two cores when each is split
between them. Refuses to know losses and networks, and how rows are divided (division.py): the caller gives a function
of one stream.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def side_by_side(work: Callable[[list[int]], Result], parts: Sequence[list[int]], *, cores: int) -> Iterator[Result]:
    """`work` of every part, in order: one after the other on all threads, or `cores` at a time on one thread each.

    `work` must not depend on what runs beside it. Its gradient and inference modes are its own to set.
    """
    if cores == 1 or len(parts) < cores:
        yield from map(work, parts)
        return
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(work, parts)
