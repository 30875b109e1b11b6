"""Adapters that lie side by side are multiplied together, and their rows come out as if each were alone."""

from pathlib import Path

import pytest
import torch
from reference_models import largest_difference
from tests.contract.engine_suite import tiny_model, write_adapter
from torch import Tensor

from smedje.modeling.adapter import load_adapter
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.served_adapters import BATCHED_ROWS, AdapterBank, SegmentedLora, ServedAdapter
from smedje.modeling.transformer import CausalDecoder
from smedje.objects.store import open_objects
from smedje.serving.adapters import BANK_PLACES, AdapterCache

ROWS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Object storage with ten adapters of rank 4 and one of rank 2."""
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> CausalDecoder:
    """A tiny packed model, whose adapters are in `folder`."""
    model = tiny_model(tmp_path_factory.mktemp("model"))
    for number in range(10):
        write_adapter(model, folder / f"a{number}", seed=number)
    write_adapter(model, folder / "thin", seed=99, rank=2)
    model.pack()
    return model


def hidden(model: CausalDecoder, segments: list[tuple[ServedAdapter, Tensor]]) -> Tensor:
    """Hidden states of one-token documents, each row by itself."""
    tokens = torch.randint(3, 320, (ROWS,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.forward(tokens, torch.zeros(ROWS, dtype=torch.int64), attend(), SegmentedLora(segments))


def attend() -> DocumentAttention:
    """Every row is a document of its own."""
    return DocumentAttention([1] * ROWS)


def cache_of(model: CausalDecoder, folder: Path, *, capacity: int = 32) -> AdapterCache:
    """Adapters in memory, from `folder`."""
    return AdapterCache(model, open_objects(folder.as_uri()), folder=folder, capacity=capacity)


@pytest.mark.parametrize(
    "counts",
    [[2] * 8, [1, 2, 3, 1], [2, 0, 2, 2], [0, 3, 3], [1, 0, 0, 0, 0, 0, 0, 1], [BATCHED_ROWS + 1, 2, 2], [1] * 10],
    ids=["even", "uneven", "a gap", "a late start", "far apart", "one with many", "two banks"],
)
@pytest.mark.parametrize("order", ["in order", "shuffled"])
def test_together_equals_alone(model: CausalDecoder, folder: Path, counts: list[int], order: str) -> None:
    """Whatever the numbers of rows and wherever they are, each row gets its own adapter and the rest none."""
    cache = cache_of(model, folder)
    for number in range(len(counts)):
        cache.acquire(f"a{number}")
    free = torch.arange(5, ROWS)
    if order == "shuffled":
        free = free[torch.randperm(len(free), generator=torch.Generator().manual_seed(2))]
    parts = torch.split(free[: sum(counts)], counts)
    segments = [(cache.get(f"a{number}"), rows) for number, rows in enumerate(parts)]
    together = hidden(model, segments)
    expected = hidden(model, [])
    for number, rows in enumerate(parts):
        if len(rows):
            own = ServedAdapter(model, *load_adapter(folder / f"a{number}"))
            expected[rows] = hidden(model, [(own, rows)])[rows]
            assert largest_difference(expected[rows], hidden(model, [])[rows]) > 0.1
    assert largest_difference(together, expected) < 1e-5


def test_a_place_is_used_again(model: CausalDecoder, folder: Path) -> None:
    """An adapter that is put out leaves its place to the next, and what the next one says is its own."""
    cache = cache_of(model, folder, capacity=2)
    rows = torch.arange(4)
    for number in range(10):
        key = f"a{number}"
        cache.acquire(key)
        own = ServedAdapter(model, *load_adapter(folder / key))
        assert cache.get(key).place < 3
        assert largest_difference(hidden(model, [(cache.get(key), rows)]), hidden(model, [(own, rows)])) < 1e-5
        cache.release(key)


def test_shapes_that_differ_lie_apart(model: CausalDecoder, folder: Path) -> None:
    """An adapter of another rank gets a bank of its own, and both are right in one batch."""
    cache = cache_of(model, folder)
    for key in ("a0", "thin", "a1"):
        cache.acquire(key)
    banks = [cache.get(key).bank for key in ("a0", "thin", "a1")]
    assert banks[0] is banks[2] is not banks[1]
    rows = {key: torch.arange(3 * number, 3 * number + 3) for number, key in enumerate(("a0", "thin", "a1"))}
    mixed = hidden(model, [(cache.get(key), of) for key, of in rows.items()])
    for key, of in rows.items():
        own = ServedAdapter(model, *load_adapter(folder / key))
        assert largest_difference(mixed[of], hidden(model, [(own, of)])[of]) < 1e-5


def test_a_full_bank_takes_no_more(model: CausalDecoder, folder: Path) -> None:
    """A bank refuses what has no place, and takes it once a place was given up."""
    served = [ServedAdapter(model, *load_adapter(folder / f"a{number}"), settled=False) for number in range(3)]
    bank = AdapterBank(served[0], places=2)
    assert [bank.take(adapter) for adapter in served] == [True, True, False]
    bank.give_up(served[0])
    assert bank.take(served[2])
    assert served[2].place == 0
    assert BANK_PLACES > 2
