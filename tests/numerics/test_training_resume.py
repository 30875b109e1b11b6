"""Exact resume: an interrupted run ends with the very bytes of an uninterrupted one."""

from itertools import islice
from pathlib import Path

import pytest
from tests.training_runs import Bench, bench

from smedje.errors import NotFound
from smedje.modeling.adapter import adapter_files
from smedje.training.checkpoint import STATE_FILE, load_latest_state, load_state, save_state, saved_steps
from smedje.training.loop import State, train
from smedje.training.spec import LoraSpec
from smedje.training.worker import Reporter, train_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(tmp_path_factory.mktemp("resume")).with_spec(lora=LoraSpec(rank=4, alpha=8.0, dropout=0.1))


def adapter_bytes(state: State) -> bytes:
    return adapter_files(state.lora.weights(), state.lora.config, "tiny")["adapter_model.safetensors"]


@pytest.mark.parametrize("stop_after", [1, 3, 5, 8])
def test_resume_is_byte_identical(place: Bench, stop_after: int) -> None:
    """Stop after any step, load the saved state into a fresh process's objects, finish: same bytes, dropout on."""
    _, straight = place.train()
    folder = place.folder(f"run-stop{stop_after}")
    job, first = place.prepare()
    for record in train(job, first):
        if record.step == stop_after:
            break
    save_state(place.objects, folder, first)
    again = place.with_spec(earlier_runs=(folder.run_id,))
    job, second = again.prepare()
    assert second.step == stop_after
    assert list(train(job, second))
    assert adapter_bytes(second) == adapter_bytes(straight)
    assert second.trained_tokens == straight.trained_tokens


def test_repeated_steps_report_the_same_numbers(place: Bench) -> None:
    """A step done again after a resume reports exactly what it reported the first time."""
    first, _ = place.train()
    folder = place.folder("run-repeat")
    job, state = place.prepare()
    list(islice(train(job, state), 4))
    save_state(place.objects, folder, state)
    job, state = place.with_spec(earlier_runs=(folder.run_id,)).prepare()
    repeated = {r.step: r for r in train(job, state)}
    for record in first:
        if record.step in repeated:
            assert repeated[record.step].train_loss == record.train_loss
            assert repeated[record.step].full_valid_loss == record.full_valid_loss


def test_two_states_are_kept(place: Bench) -> None:
    """Saving after each step keeps the newest two states."""
    folder = place.folder("run-keep")
    job, state = place.prepare()
    for _ in islice(train(job, state), 4):
        save_state(place.objects, folder, state)
    assert saved_steps(place.objects, folder) == [2, 3]


def test_state_is_saved_as_often_as_is_asked(place: Bench, tmp_path: Path) -> None:
    """With no seconds between, every step but the last leaves its state; with an hour, none does."""
    for seconds, steps in ((0.0, [8, 9]), (3600.0, [])):
        folder = place.with_spec(state_seconds=seconds).folder(f"run-every-{seconds}")
        assert train_run(place.objects, folder, Reporter(folder), cache=tmp_path).step == 10
        assert saved_steps(place.objects, folder) == steps


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_state_falls_back_to_the_one_before(place: Bench, damage: str) -> None:
    """A flipped bit, a cut file or a missing one is noticed by its digest, and the state before it is used."""
    folder = place.folder(f"run-damage-{damage}")
    job, state = place.prepare()
    for _ in islice(train(job, state), 4):
        save_state(place.objects, folder, state)
    key = f"{folder.state_prefix(3)}/{STATE_FILE}"
    raw = bytearray(place.objects.get(key))
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
        place.objects.put(key, bytes(raw))
    elif damage == "truncate":
        place.objects.put(key, bytes(raw[: len(raw) // 2]))
    else:
        place.objects.delete(key)
    _, other = place.prepare()
    with pytest.raises(NotFound):
        load_state(place.objects, folder, 3, other, cache=place.root / "cache")
    assert load_latest_state(place.objects, folder, other, cache=place.root / "cache")
    assert other.step == 2


def test_unfinished_state_does_not_exist(place: Bench) -> None:
    """A state whose manifest was never written is not listed and not loaded."""
    folder = place.folder("run-torn")
    job, state = place.prepare()
    for _ in islice(train(job, state), 2):
        save_state(place.objects, folder, state)
    place.objects.delete(f"{folder.state_prefix(1)}/manifest.json")
    assert saved_steps(place.objects, folder) == [0]


def test_continuing_from_an_adapter_starts_where_it_ended(place: Bench, tmp_path: Path) -> None:
    """A job that continues from a checkpoint measures, at step 0, what that checkpoint measured at its end."""
    from smedje.training.checkpoint import save_checkpoint

    records, state = place.train()
    key = save_checkpoint(place.objects, place.folder("run-first"), state, base_model="tiny", metrics={})
    first = place.with_spec(lora=LoraSpec(rank=4, alpha=8.0, initial=key)).train()[0][0]
    assert first.full_valid_loss == pytest.approx(records[-1].full_valid_loss, rel=1e-6)


@pytest.mark.parametrize("damage", ["flip", "digit", "empty", "other-step", "other-run"])
def test_damaged_manifest_falls_back_too(place: Bench, damage: str) -> None:
    """A manifest with a flipped bit or another number, an empty one, or one of another step or run does not count."""
    folder, other = place.folder(f"run-sealed-{damage}"), place.folder(f"run-sealed-{damage}-other")
    job, state = place.prepare()
    for _ in islice(train(job, state), 4):
        save_state(place.objects, folder, state)
        save_state(place.objects, other, state)
    key = f"{folder.state_prefix(3)}/manifest.json"
    raw = place.objects.get(key)
    place.objects.put(
        key,
        {
            "flip": raw[:5] + bytes([raw[5] ^ 0x80]) + raw[6:],
            "digit": raw.replace(b'"trained_tokens":', b'"trained_tokens":1'),
            "empty": b"",
            "other-step": place.objects.get(f"{folder.state_prefix(2)}/manifest.json"),
            "other-run": place.objects.get(f"{other.state_prefix(3)}/manifest.json"),
        }[damage],
    )
    _, again = place.prepare()
    assert load_latest_state(place.objects, folder, again, cache=place.root / "cache")
    assert again.step == 2
