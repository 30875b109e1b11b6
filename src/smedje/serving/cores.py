"""On how many cores a step is quickest, found by trying. Knows threads, rows and seconds; knows nothing of models.

A step of few rows is hundreds of short products. Splitting one costs a wake-up, which on some machines takes longer
than the product and on others nothing; and a core that another process uses is worse than none. A step with prompts may
also be two streams side by side, each on half of the cores, which wake nobody up. So each size of step tries each way
now and then and stays with the quickest.
"""

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

# Each way is tried so often, then the quickest is kept for so many steps.
TRIES = 3
KEPT_STEPS = 400


class Way(NamedTuple):
    """threads: of each stream. apart: whether the step's chunks are two streams."""

    threads: int
    apart: bool = False


class _Size:
    """What is known of steps of one size. count: steps since trying began."""

    def __init__(self, choices: int) -> None:
        self.count = 0
        self.best = 0
        self.seconds = [deque[float](maxlen=TRIES) for _ in range(choices)]


class Cores:
    """Chooses for the thread that calls it; torch's number of threads belongs to each thread.

    whole: ways of a step in one stream. apart: the way of one in two, None where there is one core.
    """

    def __init__(self, most: int) -> None:
        counts = [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]
        self.whole = [Way(count) for count in counts]
        self.apart = Way(most // 2, apart=True) if most > 1 else None
        self._sizes: dict[tuple[int, bool], _Size] = {}
        self._set = 0

    @contextmanager
    def step(self, rows: int, *, divisible: bool = False) -> Iterator[bool]:
        """Run a step of so many rows in the way whose turn it is; whether that is in two streams.

        divisible: whether it could be.
        """
        ways = self.ways(divisible)
        if len(ways) == 1:
            yield False
            return
        choice = self.choice(rows, divisible=divisible)
        way = ways[choice]
        if self._set != way.threads:
            self._set = way.threads
            torch.set_num_threads(way.threads)
        began = time.perf_counter()
        yield way.apart
        self.told(rows, choice, time.perf_counter() - began, divisible=divisible)

    def ways(self, divisible: bool) -> list[Way]:
        """What may be tried."""
        return [*self.whole, self.apart] if divisible and self.apart is not None else self.whole

    def choice(self, rows: int, *, divisible: bool = False) -> int:
        """The index of the way that the next step of so many rows should take: one to try, or the quickest."""
        size, count = self._size(rows, divisible), len(self.ways(divisible))
        return size.count % count if size.count < TRIES * count else size.best

    def told(self, rows: int, choice: int, seconds: float, *, divisible: bool = False) -> None:
        """How long a step of so many rows took in a way."""
        size = self._size(rows, divisible)
        tried = TRIES * len(self.ways(divisible))
        if size.count < tried:
            size.seconds[choice].append(seconds / rows)
        size.count += 1
        if size.count == tried:
            medians = [statistics.median(one) for one in size.seconds]
            size.best = medians.index(min(medians))
        elif size.count == tried + KEPT_STEPS:
            size.count = 0

    def _size(self, rows: int, divisible: bool) -> _Size:
        return self._sizes.setdefault((rows.bit_length(), divisible), _Size(len(self.ways(divisible))))
