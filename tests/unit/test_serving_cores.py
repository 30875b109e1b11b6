"""How an engine finds on how many cores a step is quickest."""

from collections.abc import Callable

import pytest
import torch

from smedje.serving.cores import KEPT_STEPS, TRIES, Cores, Way


def taken(cores: Cores, steps: int, rows: int, seconds: Callable[[int], float]) -> list[int]:
    """The threads of so many steps that take `seconds` with each number of threads."""
    found = []
    for _ in range(steps):
        choice = cores.choice(rows)
        found.append(cores.whole[choice].threads)
        cores.told(rows, choice, seconds(found[-1]))
    return found


def test_the_quickest_is_kept_and_tried_again() -> None:
    """Every number is tried in turn, the quickest stays; when another has become quicker it is found out."""
    cores = Cores(6)
    assert [way.threads for way in cores.whole] == [1, 2, 4, 6]
    tries = TRIES * 4
    assert taken(cores, tries, 3, lambda threads: abs(threads - 4)) == [1, 2, 4, 6] * TRIES
    assert set(taken(cores, KEPT_STEPS, 3, lambda threads: abs(threads - 4))) == {4}
    taken(cores, tries, 2, float)
    assert set(taken(cores, KEPT_STEPS, 3, float)) == {1}


def test_one_slow_step_does_not_decide() -> None:
    """A step that something else has held up among the tries changes nothing."""
    cores = Cores(2)
    held_up = iter([1.0, 50.0, 1.0])
    taken(cores, TRIES * 2, 1, lambda threads: 2.0 if threads == 1 else next(held_up))
    assert set(taken(cores, KEPT_STEPS, 1, float)) == {2}


def test_sizes_are_decided_apart() -> None:
    """Few rows stay on one core while many take all."""
    cores = Cores(2)
    for _ in range(TRIES * 2):
        taken(cores, 1, 1, float)
        taken(cores, 1, 200, lambda threads: 1 / threads)
    assert [cores.whole[cores.choice(rows)].threads for rows in (1, 200)] == [1, 2]


def test_two_streams_are_tried_where_a_step_divides() -> None:
    """A divisible step may be two streams of half the cores each; it is decided apart from steps of one stream, and
    one core has nothing to divide."""
    cores = Cores(4)
    assert cores.ways(False) == [Way(1), Way(2), Way(4)]
    assert cores.ways(True) == [Way(1), Way(2), Way(4), Way(2, apart=True)]
    for _ in range(TRIES * 4):
        choice = cores.choice(100, divisible=True)
        cores.told(100, choice, 1.0 if cores.ways(True)[choice].apart else 2.0, divisible=True)
    assert cores.ways(True)[cores.choice(100, divisible=True)].apart
    assert cores.choice(100) == 0
    assert Cores(1).ways(True) == [Way(1)]


@pytest.fixture
def threads() -> int:
    """Two compute threads for this test."""
    torch.set_num_threads(2)
    return 2


def test_a_step_runs_on_the_chosen_threads(threads: int) -> None:
    """What torch computes with is what was chosen; a single thread is left alone."""
    cores = Cores(threads)
    seen = []
    for _ in range(4):
        with cores.step(1):
            seen.append(torch.get_num_threads())
    assert seen == [1, 2, 1, 2]
    divided = []
    for _ in range(6):
        with cores.step(100, divisible=True) as apart:
            divided.append((torch.get_num_threads(), apart))
    assert divided == [(1, False), (2, False), (1, True)] * 2
    torch.set_num_threads(1)
    with Cores(1).step(1):
        assert torch.get_num_threads() == 1
