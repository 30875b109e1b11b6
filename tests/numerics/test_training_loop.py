"""The training loop's arithmetic: sums, steps, golden curve, and that every knob acts."""

import itertools
import math
import os
from pathlib import Path

import msgspec
import pytest
import torch
from tests.training_runs import Bench, bench, chat_rows

from smedje.data.batches import flat_batch
from smedje.training.loop import train
from smedje.training.objectives import supervised, to_tensors
from smedje.training.optimizer import rate_at
from smedje.training.spec import DataSpec, LoraSpec, OptimizerSpec, ScheduleSpec

GOLDEN = Path(__file__).parent / "golden" / "supervised.txt"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(tmp_path_factory.mktemp("loop"))


def losses(place: Bench) -> list[float]:
    return [r.train_loss for r in place.train()[0] if r.train_loss is not None]


def weights(place: Bench) -> torch.Tensor:
    return torch.cat([w.flatten() for w in place.train()[1].lora.weights().values()])


def test_loss_follows_the_golden_curve(place: Bench) -> None:
    """Ten steps of the tiny Llama give the recorded losses; UPDATE_GOLDEN=1 records them anew."""
    found = losses(place.with_spec(max_steps=10))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text("".join(f"{value:.6f}\n" for value in found))
    expected = [float(line) for line in GOLDEN.read_text().split()]
    assert found == pytest.approx(expected, rel=1e-4)
    assert found[-1] < found[0]


def test_phi3_trains_by_the_same_loop(tmp_path: Path) -> None:
    """The fused Phi-3 layout lowers its loss through the same code."""
    found = losses(bench(tmp_path, family="phi3"))
    assert found[-1] < found[0]


def test_one_big_stream_equals_many_small_ones(place: Bench) -> None:
    """Ragged rows in micro-batches of one row give the same gradient as one stream of all rows (accumulation); only a
    stream of several rows computes what they begin with alike once."""

    def gradient(micro_batch_tokens: int) -> torch.Tensor:
        job, state = place.with_spec(micro_batch_tokens=micro_batch_tokens, max_steps=1).prepare()
        record = list(train(job, state))[1]
        clipped = min(1.0, job.max_grad_norm / record.grad_norm)
        return torch.cat([p.grad.flatten() / clipped for p in state.lora.parameters() if p.grad is not None])

    together, apart = gradient(100_000), gradient(1)
    assert (together - apart).norm() <= 1e-5 * together.norm()
    many = place.with_spec(micro_batch_tokens=1)
    assert losses(many) == pytest.approx(losses(place.with_spec(micro_batch_tokens=100_000)), rel=1e-3)
    alone, packed = (place.with_spec(micro_batch_tokens=most).train()[0][1] for most in (1, 100_000))
    assert packed.computed < alone.computed


def test_packed_rows_lose_what_single_rows_lose(place: Bench) -> None:
    """The loss sum of a packed stream is the sum of its documents' losses: no attention across documents."""
    job, state = place.prepare()
    rows = job.training.indices[:6]
    dataset = job.training.dataset
    packed = supervised(state.decoder, state.lora, to_tensors(flat_batch(dataset, rows), "cpu"))
    alone = [supervised(state.decoder, state.lora, to_tensors(flat_batch(dataset, [r]), "cpu")) for r in rows]
    assert packed.loss.item() == pytest.approx(sum(s.loss.item() for s in alone), rel=1e-5)
    assert packed.count == sum(s.count for s in alone)
    assert packed.correct == sum(s.correct for s in alone)


def test_step_zero_is_the_base_model(place: Bench) -> None:
    """The first record measures the validation rows before any training, and a fresh adapter changes nothing."""
    job, state = place.prepare()
    assert job.validation is not None
    batch = to_tensors(flat_batch(job.validation.dataset, list(job.validation.indices)), "cpu")
    bare = supervised(state.decoder, lambda site, x, y: y, batch)
    first = place.train()[0][0]
    assert first.step == 0
    assert first.train_loss is None
    assert first.full_valid_loss == pytest.approx(bare.loss.item() / bare.weight, rel=1e-6)


def test_validation_rows_are_never_trained_on(place: Bench) -> None:
    """The seeded split shares no row between training and validation and keeps its fraction."""
    job, _ = place.prepare()
    assert job.validation is not None
    assert not set(job.training.indices) & set(job.validation.indices)
    assert len(job.validation.indices) == 6


def test_a_validation_file_is_held_out_whole(place: Bench) -> None:
    """With a validation file its rows are measured, all rows of the training file are trained, and no share is held
    out."""
    place.objects.put("data/held", chat_rows(5, seed=3))
    data = DataSpec(training_key="data/train", validation_key="data/held", validation_fraction=0.5, max_tokens=400)
    job, _ = place.with_spec(data=data).prepare()
    assert job.validation is not None
    assert (len(job.training.indices), len(job.validation.indices)) == (24, 5)


def test_the_jobs_date_is_rendered(tmp_path: Path) -> None:
    """A template that prints the date prints the job's, so that a run that goes on later has the same tokens."""
    place = bench(tmp_path)
    file = Path(place.spec.base_folder) / "tokenizer_config.json"
    config = msgspec.json.decode(file.read_bytes())
    config["chat_template"] = "{{ strftime_now('%d %B %Y') }}" + config["chat_template"]
    file.write_bytes(msgspec.json.encode(config))
    first, same, other = (
        place.with_spec(today=day).prepare()[0].training.dataset.tokens
        for day in ("2026-01-31", "2026-01-31", "2026-09-01")
    )
    assert first == same != other


def test_every_epoch_end_measures_all_validation_rows(place: Bench) -> None:
    """Full validation figures stand at step 0 and at each epoch's last step, and nowhere else."""
    records, _ = place.train()
    with_full = [r.step for r in records if r.full_valid_loss is not None]
    per_epoch = math.ceil(18 / 4)
    assert with_full == [0, per_epoch, 2 * per_epoch]
    assert [r.step for r in records if r.epoch_end] == [per_epoch, 2 * per_epoch]


def test_message_weight_zero_is_not_trained(tmp_path: Path) -> None:
    """Giving an assistant message weight 0 removes its tokens from the labelled ones."""
    place = bench(tmp_path)
    rows = [msgspec.json.decode(line) for line in chat_rows(12).splitlines()]
    place.objects.put("data/plain", b"\n".join(msgspec.json.encode(r) for r in rows))
    two_turns = [r for r in rows if len(r["messages"]) == 5]
    for row in two_turns:
        row["messages"][2]["weight"] = 0
    place.objects.put("data/weighted", b"\n".join(msgspec.json.encode(r) for r in rows))

    def labelled(key: str) -> int:
        data = DataSpec(training_key=key, validation_fraction=0.0, max_tokens=400)
        records, _ = place.with_spec(data=data, n_epochs=1, batch_size=12).train()
        return records[0].labelled

    assert two_turns
    assert labelled("data/weighted") < labelled("data/plain")


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"n_epochs": 1},
        {"batch_size": 2},
        {"max_steps": 3},
        {"lora": LoraSpec(rank=4, alpha=16.0)},
        {"lora": LoraSpec(rank=4, alpha=8.0, dropout=0.2)},
        {"optimizer": OptimizerSpec(base_learning_rate=1e-2, multiplier=0.5)},
        {"optimizer": OptimizerSpec(base_learning_rate=1e-2, learning_rate=3e-3)},
        {"optimizer": OptimizerSpec(base_learning_rate=1e-2, weight_decay=0.5)},
        {"optimizer": OptimizerSpec(base_learning_rate=1e-2, beta1=0.5)},
        {"optimizer": OptimizerSpec(base_learning_rate=1e-2, beta2=0.9)},
        {"schedule": ScheduleSpec(warmup_ratio=0.5)},
        {"data": DataSpec(training_key="data/train", validation_fraction=0.5, max_tokens=400)},
    ],
    ids=str,
)
def test_every_knob_changes_the_adapter(place: Bench, changes: dict[str, object]) -> None:
    """An option that were ignored would leave the adapter as it is."""
    assert not torch.equal(weights(place), weights(place.with_spec(**changes)))


def test_gradients_are_clipped_to_the_norm(place: Bench) -> None:
    """A lower norm ends elsewhere. adam forgets a gradient's size, so its eps is large here."""
    clipped, free = (
        weights(place.with_spec(optimizer=OptimizerSpec(base_learning_rate=1e-2, eps=1e-2, max_grad_norm=norm)))
        for norm in (1e-3, 1.0)
    )
    assert not torch.equal(clipped, free)


def test_rank_changes_the_adapters_shape(place: Bench) -> None:
    """A larger rank makes a larger adapter."""
    small, large = (place.with_spec(lora=LoraSpec(rank=r, alpha=8.0)).prepare()[1].lora for r in (2, 8))
    assert sum(p.numel() for p in large.parameters()) == 4 * sum(p.numel() for p in small.parameters())


def test_schedule_rises_then_falls_to_zero(place: Bench) -> None:
    """Warm-up is linear to the peak, the cosine then falls at every step and ends near zero."""
    job, _ = place.with_spec(schedule=ScheduleSpec(warmup_ratio=0.3)).prepare()
    plan = job.plan
    rates = [rate_at(step, plan) for step in range(plan.total_steps)]
    assert plan.warmup_steps == 3
    assert rates[:3] == pytest.approx([plan.learning_rate * k / 3 for k in (1, 2, 3)])
    assert rates[3] == pytest.approx(plan.learning_rate)
    assert all(a > b for a, b in itertools.pairwise(rates[3:]))
    assert rates[-1] < 0.1 * plan.learning_rate


def test_too_long_example_is_refused(place: Bench) -> None:
    """max_tokens is a limit, not a knife: a longer example stops the run with its line."""
    data = DataSpec(training_key="data/train", max_tokens=16)
    with pytest.raises(Exception, match=r"[Ll]ine 1") as caught:
        place.with_spec(data=data).prepare()
    assert caught.value.code == "example_too_long"


def test_trained_tokens_count_every_row_once_an_epoch(place: Bench) -> None:
    """trained_tokens is the sum of the rows' lengths times the epochs."""
    _, state = place.train()
    job, _ = place.prepare()
    assert state.trained_tokens == 2 * sum(job.training.dataset.length(i) for i in job.training.indices)
