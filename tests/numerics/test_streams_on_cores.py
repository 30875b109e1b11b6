"""Streams side by side: even groups, and the same training whatever the number of cores."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training_runs import Bench, bench

from smedje.data.encode import EncodedDataset
from smedje.data.forest import shared_tokens
from smedje.training.division import SHORTEST_STREAM, USUAL_STREAM, a_stream_each, even_groups, turns
from smedje.training.loop import _parts
from smedje.training.streams import side_by_side


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(tmp_path_factory.mktemp("cores"), rows=80).with_spec(batch_size=40, micro_batch_tokens=8192)


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 500), st.integers(1, 4))
def test_groups_hold_every_row_once_within_the_budget(lengths: list[int], budget: int, cores: int) -> None:
    """Each place stands in one group; no group of several rows is above the budget; as many groups as cores share."""
    groups = even_groups(lengths, token_budget=budget, multiple=cores)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or sum(lengths[place] for place in group) <= budget for group in groups)
    assert len(groups) % cores == 0 or len(groups) == len(lengths)


@pytest.mark.parametrize(
    ("own", "budget", "wanted"),
    [
        (100, 4096, 1),
        (2 * USUAL_STREAM, 4096, 1),
        (round(2.4 * USUAL_STREAM), 4096, 1),
        (round(2.4 * USUAL_STREAM), USUAL_STREAM, 2),
        (8 * USUAL_STREAM, 4096, 4),
        (8 * USUAL_STREAM, USUAL_STREAM // 2, 8),
    ],
)
def test_streams_are_about_as_long_as_usual(own: int, budget: int, wanted: int) -> None:
    """A little more than one turn of two streams is one turn of longer streams, unless that is above the budget."""
    assert turns(own, token_budget=budget, cores=2) == wanted
    assert len(even_groups([own // 64] * 64, token_budget=budget, multiple=2)) == 2 * wanted


@pytest.mark.parametrize(
    ("own", "shared", "cores", "wanted"),
    [
        (4000, 0, 2, True),
        (4000, 1000, 2, True),
        (1000, 4000, 2, False),
        (4000, 1000, 16, False),
        (2 * SHORTEST_STREAM - 1, 0, 2, False),
        (4000, 0, 1, False),
    ],
)
def test_cores_have_a_stream_each_where_it_is_quicker(own: int, shared: int, cores: int, wanted: bool) -> None:
    """Not where most is shared, where many cores would repeat it, where streams are short, or for one core."""
    assert a_stream_each(own, shared, cores=cores) is wanted


def test_two_cores_train_as_one(place: Bench, tmp_path: Path) -> None:
    """The adapter after eight steps on two cores equals that of one core to rounding, and repeats to the last bit."""
    torch.set_num_threads(1)
    two = place.with_spec(threads=2, max_steps=8)
    job, _ = two.prepare()
    assert job.cores == 2
    lengths = [job.training.dataset.length(row) for row in job.training.indices]
    assert sum(sorted(lengths)[:40]) > 2 * SHORTEST_STREAM, "else both run one after the other"
    first, again, single = (run.train()[1].lora for run in (two, two, place.with_spec(max_steps=8)))
    assert first is not None
    assert again is not None
    assert single is not None
    for name, tensor in first.weights().items():
        assert torch.equal(tensor, again.weights()[name]), name
        assert torch.allclose(tensor, single.weights()[name], atol=2e-5), name


def test_one_core_s_streams_are_no_longer_than_usual(tmp_path: Path) -> None:
    """A step of many rows on one core is divided at the usual length, far below what it may compute at once."""
    job, _ = bench(tmp_path, rows=400).with_spec(batch_size=300, threads=1, micro_batch_tokens=100_000).prepare()
    chosen = list(job.training.indices)
    rows = job.training.dataset
    assert isinstance(rows, EncodedDataset)
    shared = shared_tokens(rows, chosen)
    lengths = [sum(rows.length(row) - shared for row in part) for part in _parts(job, job.training, chosen)]
    assert len(lengths) > 1
    assert max(lengths) <= USUAL_STREAM


def test_results_come_in_the_order_of_the_parts() -> None:
    """However long each part takes; and with fewer parts than cores they run one after the other."""
    assert list(side_by_side(len, [[1] * n for n in (5, 1, 3, 2)], cores=2)) == [5, 1, 3, 2]
    assert list(side_by_side(len, [[1]], cores=2)) == [1]
