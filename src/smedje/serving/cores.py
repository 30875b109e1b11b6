"""On how many cores a step is quickest, found by trying. Knows threads, rows and seconds; knows nothing of models.

A step of few rows is hundreds of short products. Splitting one costs a wake-up, which on some machines takes longer
than the product and on others nothing; and a core that another process uses is worse than none. So each size of step
tries each number of threads now and then and stays with the quickest.
"""

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Each number of threads is tried so often, then the quickest is kept for so many steps.
TRIES = 3
KEPT_STEPS = 400


class _Size:
    """What is known of steps of one size. count: steps since trying began."""

    def __init__(self, choices: int) -> None:
        self.count = 0
        self.best = 0
        self.seconds = [deque[float](maxlen=TRIES) for _ in range(choices)]


class Cores:
    """Chooses for the thread that calls it; torch's number of threads belongs to each thread."""

    def __init__(self, most: int) -> None:
        self.choices = [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]
        self._sizes: dict[int, _Size] = {}
        self._set = 0

    @contextmanager
    def step(self, rows: int) -> Iterator[None]:
        """Run a step of so many rows on the number of cores whose turn it is."""
        if len(self.choices) == 1:
            yield
            return
        choice = self.choice(rows)
        if self._set != self.choices[choice]:
            self._set = self.choices[choice]
            torch.set_num_threads(self._set)
        began = time.perf_counter()
        yield
        self.told(rows, choice, time.perf_counter() - began)

    def choice(self, rows: int) -> int:
        """The index of what the next step of so many rows should take: one to try, or the quickest."""
        size = self._size(rows)
        return size.count % len(self.choices) if size.count < TRIES * len(self.choices) else size.best

    def told(self, rows: int, choice: int, seconds: float) -> None:
        """How long a step of so many rows took with a choice."""
        size = self._size(rows)
        tried = TRIES * len(self.choices)
        if size.count < tried:
            size.seconds[choice].append(seconds)
        size.count += 1
        if size.count == tried:
            medians = [statistics.median(one) for one in size.seconds]
            size.best = medians.index(min(medians))
        elif size.count == tried + KEPT_STEPS:
            size.count = 0

    def _size(self, rows: int) -> _Size:
        return self._sizes.setdefault(rows.bit_length(), _Size(len(self.choices)))
