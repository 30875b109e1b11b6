from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smedje.data.batches import epoch_order, flat_batch, micro_batches, step_rows, steps_in_epoch
from smedje.data.encode import EncodedDataset
from smedje.data.split import split_rows

FROZEN_ORDER = [1, 8, 4, 2, 9, 6, 5, 7, 3, 0]

ROWS = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 1.0, 0.5])), min_size=1, max_size=9),
    min_size=1,
    max_size=8,
)


def dataset_of(rows: list[list[tuple[int, float]]]) -> EncodedDataset:
    dataset = EncodedDataset()
    for number, row in enumerate(rows):
        dataset.tokens.extend(token for token, _ in row)
        dataset.weights.extend(weight for _, weight in row)
        dataset.offsets.append(len(dataset.tokens))
        dataset.lines.append(number + 1)
        dataset.groups.append(number)
    return dataset


@given(rows=st.integers(0, 50), seed=st.integers(0, 2**63), epoch=st.integers(0, 5))
def test_epoch_order_is_a_permutation_and_a_pure_function(rows: int, seed: int, epoch: int) -> None:
    """Every row stands once in the order, and asking twice gives the same."""
    order = epoch_order(rows, seed=seed, epoch=epoch)
    assert sorted(order) == list(range(rows))
    assert order == epoch_order(rows, seed=seed, epoch=epoch)


def test_epoch_order_is_frozen() -> None:
    """The documented order never changes, because saved runs continue by it; epochs and seeds differ."""
    assert epoch_order(10, seed=1, epoch=0) == FROZEN_ORDER
    assert epoch_order(10, seed=1, epoch=1) != FROZEN_ORDER
    assert epoch_order(10, seed=2, epoch=0) != FROZEN_ORDER


@given(rows=st.integers(1, 40), batch_size=st.integers(1, 12))
def test_steps_cover_an_epoch_once_with_a_short_last_step(rows: int, batch_size: int) -> None:
    """The steps of an epoch hold every row once; only the last may be smaller than the batch size."""
    order = epoch_order(rows, seed=3, epoch=0)
    count = steps_in_epoch(rows, batch_size=batch_size)
    steps = [step_rows(order, batch_size=batch_size, step=step) for step in range(count)]
    assert [row for step in steps for row in step] == order
    assert all(len(step) == batch_size for step in steps[:-1])
    assert 1 <= len(steps[-1]) <= batch_size


@given(lengths=st.lists(st.integers(1, 40), max_size=30), token_budget=st.integers(1, 60))
def test_micro_batches_keep_every_example_once_within_the_budget(lengths: list[int], token_budget: int) -> None:
    """Each place stands in one group; only a single example that is too long alone goes over the budget."""
    groups = micro_batches(lengths, token_budget=token_budget)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[place] for place in group) <= token_budget
    if lengths and max(lengths) <= token_budget:
        assert len(groups) <= 2 * -(-sum(lengths) // token_budget)


@given(rows=ROWS)
@settings(max_examples=200)
def test_flat_batch_holds_every_token_as_input_or_target_once(rows: list[list[tuple[int, float]]]) -> None:
    """Documents follow each other without their last token; labelled rows predict exactly the weighted tokens."""
    batch = flat_batch(dataset_of(rows), range(len(rows)))
    kept = [row for row in rows if len(row) > 1]
    assert list(batch.tokens) == [token for row in kept for token, _ in row[:-1]]
    assert batch.lengths == [len(row) - 1 for row in kept]
    assert list(batch.positions) == [place for row in kept for place in range(len(row) - 1)]
    assert list(batch.targets) == [token for row in kept for token, weight in row[1:] if weight > 0]
    assert list(batch.target_weights) == [weight for row in kept for _, weight in row[1:] if weight > 0]
    following = [token for row in kept for token, _ in row[1:]]
    assert [following[place] for place in batch.target_rows] == list(batch.targets)
    assert len(batch.target_rows) == len(batch.targets)


def test_flat_batch_takes_rows_in_the_order_given() -> None:
    """The rows asked for, and only they, in their order."""
    dataset = dataset_of([[(1, 0.0), (2, 1.0)], [(3, 0.0), (4, 1.0), (5, 1.0)], [(6, 0.0), (7, 1.0)]])
    batch = flat_batch(dataset, [2, 1])
    assert batch.tokens == array("q", [6, 3, 4])
    assert batch.targets == array("q", [7, 4, 5])
    assert batch.target_rows == array("q", [0, 1, 2])


@given(rows=st.integers(0, 60), seed=st.integers(0, 99), fraction=st.floats(0, 0.9))
def test_split_is_seeded_and_complete(rows: int, seed: int, fraction: float) -> None:
    """Every row is on one side; the same seed gives the same sides; validation holds at most what was asked."""
    training, validation = split_rows(rows, seed=seed, validation_fraction=fraction)
    assert sorted(training + validation) == list(range(rows))
    assert (training, validation) == split_rows(rows, seed=seed, validation_fraction=fraction)
    assert len(validation) <= max(1, fraction * rows)
    assert rows == 0 or training


@given(groups=st.lists(st.integers(0, 6), min_size=2, max_size=40), seed=st.integers(0, 99))
def test_split_keeps_a_group_on_one_side(groups: list[int], seed: int) -> None:
    """Copies of a conversation never stand on both sides."""
    training, validation = split_rows(len(groups), seed=seed, groups=groups)
    assert not {groups[row] for row in training} & {groups[row] for row in validation}
    assert bool(validation) == (len(set(groups)) > 1)


def test_split_takes_the_share_asked_for() -> None:
    """Twenty of a hundred rows without groups; other seeds hold out other rows."""
    training, validation = split_rows(100, seed=5, validation_fraction=0.2)
    assert (len(training), len(validation)) == (80, 20)
    assert validation != split_rows(100, seed=6, validation_fraction=0.2)[1]
    with pytest.raises(ValueError, match="validation_fraction"):
        split_rows(10, seed=1, validation_fraction=1.0)
