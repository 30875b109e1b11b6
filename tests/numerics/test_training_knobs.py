"""Losses, optimizers, schedules, adapters' shapes, batches, watching: each does what its source says."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from tests.training_runs import Bench, bench, chat_rows

from smedje.modeling.adapter import adapter_files
from smedje.training.checkpoint import save_state
from smedje.training.loop import State, StepRecord, train
from smedje.training.losses import row_losses
from smedje.training.optimizer import make_optimizer, rate_at, set_rate
from smedje.training.spec import (
    DataSpec,
    LoraSpec,
    LossSpec,
    ObjectiveSpec,
    OptimizerKind,
    OptimizerSpec,
    ScheduleSpec,
    WatchSpec,
)
from smedje.training.worker import Reporter, train_run

OPTIMIZERS: tuple[OptimizerKind, ...] = ("adamw", "adam", "sgd", "adafactor", "lion", "muon")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(tmp_path_factory.mktemp("knobs"))


def weights(place: Bench) -> torch.Tensor:
    return torch.cat([w.flatten() for w in place.train()[1].lora.weights().values()])


def losses(records: list[StepRecord]) -> list[float]:
    return [r.train_loss for r in records if r.train_loss is not None]


def adapter_bytes(state: State) -> bytes:
    return adapter_files(state.lora.weights(), state.lora.config, "tiny")["adapter_model.safetensors"]


def test_losses_follow_their_formulas() -> None:
    """Label smoothing and focal loss agree with their papers' formulas in fp64, and their knobs act."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(9, 17, generator=generator, dtype=torch.float64)
    targets = torch.randint(17, (9,), generator=generator)
    log_p = torch.log_softmax(logits, -1)
    hit = log_p.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(row_losses(logits, targets, LossSpec()), -hit)
    for smoothing in (0.1, 0.4):
        smooth = -(1 - smoothing) * hit - smoothing * log_p.mean(-1)
        found = row_losses(logits, targets, LossSpec(kind="label_smoothing", smoothing=smoothing))
        torch.testing.assert_close(found, smooth)
    for gamma in (1.0, 2.5):
        focal = -((1 - hit.exp()) ** gamma) * hit
        torch.testing.assert_close(row_losses(logits, targets, LossSpec(kind="focal", gamma=gamma)), focal)


def test_focal_gradient_is_finite_for_a_certain_row() -> None:
    """A row whose target has probability 1 has no loss and no NaN in its gradient."""
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    row_losses(logits, torch.tensor([0]), LossSpec(kind="focal", gamma=0.5)).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_validation_measures_plain_cross_entropy(place: Bench) -> None:
    """Runs with different losses start from the same validation loss, so that they can be compared."""
    smooth = place.with_spec(max_steps=1, objective=ObjectiveSpec(loss=LossSpec(kind="label_smoothing")))
    first, other = place.with_spec(max_steps=1).train()[0], smooth.train()[0]
    assert first[0].full_valid_loss == other[0].full_valid_loss
    assert first[1].train_loss != other[1].train_loss


def _lion(parameter: torch.Tensor, gradients: list[torch.Tensor], rate: float) -> torch.Tensor:
    momentum = torch.zeros_like(parameter)
    for gradient in gradients:
        update = torch.sign(0.9 * momentum + 0.1 * gradient)
        parameter = parameter - rate * (update + 0.1 * parameter)
        momentum = 0.99 * momentum + 0.01 * gradient
    return parameter


def _sgd(parameter: torch.Tensor, gradients: list[torch.Tensor], rate: float) -> torch.Tensor:
    momentum = torch.zeros_like(parameter)
    for gradient in gradients:
        momentum = 0.9 * momentum + gradient + 0.1 * parameter
        parameter = parameter - rate * momentum
    return parameter


def _adam(parameter: torch.Tensor, gradients: list[torch.Tensor], rate: float, *, decoupled: bool) -> torch.Tensor:
    first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for step, gradient in enumerate(gradients, 1):
        if decoupled:
            parameter = parameter * (1 - rate * 0.1)
        else:
            gradient = gradient + 0.1 * parameter
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        parameter = parameter - rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
    return parameter


ORACLES: dict[OptimizerKind, Callable[[torch.Tensor, list[torch.Tensor], float], torch.Tensor]] = {
    "lion": _lion,
    "sgd": _sgd,
    "adam": lambda p, g, r: _adam(p, g, r, decoupled=False),
    "adamw": lambda p, g, r: _adam(p, g, r, decoupled=True),
}


@pytest.mark.parametrize("kind", list(ORACLES))
def test_optimizers_agree_with_their_formulas(kind: OptimizerKind) -> None:
    """Five steps on random gradients agree with the published update, weight decay included."""
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(5)]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = make_optimizer([parameter], OptimizerSpec(kind=kind, beta2=0.99, weight_decay=0.1))
    set_rate(optimizer, 0.03)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), ORACLES[kind](start, gradients, 0.03))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_learns_and_resumes_exactly(place: Bench, kind: OptimizerKind) -> None:
    """The loss falls, and a run stopped in the middle ends with the bytes of one that was not."""
    rate = {"sgd": 1.0, "lion": 3e-3, "muon": 2e-2}.get(kind, 1e-2)
    here = place.with_spec(optimizer=OptimizerSpec(kind=kind, learning_rate=rate), n_epochs=3)
    records, straight = here.train()
    found = losses(records)
    assert sum(found[-3:]) < sum(found[:3])
    folder = here.folder(f"run-{kind}")
    job, state = here.prepare()
    for record in train(job, state):
        if record.step == 6:
            break
    save_state(here.objects, folder, state)
    job, state = here.with_spec(earlier_runs=(folder.run_id,)).prepare()
    assert state.step == 6
    assert list(train(job, state))
    assert adapter_bytes(state) == adapter_bytes(straight)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": ObjectiveSpec(loss=LossSpec(kind="label_smoothing", smoothing=0.2))},
        {"objective": ObjectiveSpec(loss=LossSpec(kind="focal"))},
        {"optimizer": OptimizerSpec(base_learning_rate=1e-2, kind="adam", weight_decay=0.1)},
        {"optimizer": OptimizerSpec(base_learning_rate=1e-2, kind="sgd")},
        {"optimizer": OptimizerSpec(base_learning_rate=1e-2, kind="lion")},
        {"optimizer": OptimizerSpec(base_learning_rate=1e-2, kind="adafactor")},
        {"optimizer": OptimizerSpec(base_learning_rate=1e-2, kind="muon")},
        {"optimizer": OptimizerSpec(base_learning_rate=1e-2, batch_factor=2.0)},
        {"optimizer": OptimizerSpec(base_learning_rate=1e-2, eps=1e-3)},
        {"schedule": ScheduleSpec(kind="linear", warmup_ratio=0.1)},
        {"schedule": ScheduleSpec(kind="constant", warmup_ratio=0.1)},
        {"schedule": ScheduleSpec(kind="polynomial", warmup_ratio=0.1)},
        {"schedule": ScheduleSpec(warmup_steps=4)},
        {"lora": LoraSpec(rank=4, alpha=8.0, rslora=True)},
    ],
    ids=str,
)
def test_every_knob_changes_the_result(place: Bench, changes: dict[str, Any]) -> None:
    """An option that were ignored would leave the adapter as it is."""
    assert not torch.equal(weights(place), weights(place.with_spec(**changes)))


def test_momentum_acts(place: Bench) -> None:
    """sgd and muon with another momentum end elsewhere."""
    for kind in ("sgd", "muon"):
        ends = [
            weights(place.with_spec(max_steps=4, optimizer=OptimizerSpec(kind=kind, learning_rate=0.05, momentum=m)))
            for m in (0.0, 0.9)
        ]
        assert not torch.equal(*ends)


def test_schedules_follow_their_formulas(place: Bench) -> None:
    """After the warm-up: a line, a power of what is left, or nothing; warm-up steps count instead of the ratio."""
    for kind, power in (("linear", 1.0), ("polynomial", 3.0), ("constant", 0.0)):
        schedule = ScheduleSpec(kind=kind, warmup_steps=2, power=power)
        plan = place.with_spec(schedule=schedule).prepare()[0].plan
        left = plan.total_steps - 2
        rates = [rate_at(step, plan) / plan.learning_rate for step in range(plan.total_steps)]
        assert rates == pytest.approx([0.5, 1.0, *((1 - done / left) ** power for done in range(left))])


def test_targets_and_layers_choose_the_linears(place: Bench) -> None:
    """Only the named linears of the named layers get factors, and PEFT's configuration says so."""

    def names(**changes: Any) -> set[str]:
        lora = place.with_spec(lora=LoraSpec(rank=4, alpha=8.0, **changes)).prepare()[1].lora
        return {name.removeprefix("base_model.model.model.layers.").rsplit(".lora", 1)[0] for name in lora.weights()}

    assert names(targets=("q_proj", "v_proj"), layers=(1,)) == {"1.self_attn.q_proj", "1.self_attn.v_proj"}
    assert {name[0] for name in names(last_layers=1)} == {"1"}
    assert names(layers=(0, 1)) == names()


def test_rslora_scales_by_the_root_of_the_rank(place: Bench) -> None:
    """alpha / sqrt(rank) in place of alpha / rank."""
    lora = place.with_spec(lora=LoraSpec(rank=4, alpha=8.0, rslora=True)).prepare()[1].lora
    assert lora.config.scale == 4.0


def test_unknown_target_is_refused_by_name(place: Bench) -> None:
    """A linear that the base model does not have stops the run with its name and the known ones."""
    with pytest.raises(Exception, match=r"'attn'.*q_proj") as caught:
        place.with_spec(lora=LoraSpec(rank=4, targets=("attn",))).prepare()
    assert caught.value.code == "invalid_target"


def test_batch_factor_multiplies_the_rows_of_a_step(place: Bench) -> None:
    """Two batches of 4 added up are one batch of 8, number for number."""
    doubled = place.with_spec(optimizer=OptimizerSpec(base_learning_rate=1e-2, batch_factor=2.0))
    assert doubled.prepare()[0].plan.batch_size == 8
    assert torch.equal(weights(doubled), weights(place.with_spec(batch_size=8)))


def test_example_weight_is_a_weighted_mean(place: Bench) -> None:
    """A step's loss is the mean over tokens with the weights of their lines; equal weights change nothing."""
    rows = [msgspec.json.decode(line) for line in chat_rows(2).splitlines()]

    def loss(*given: float) -> float:
        lines = [{**row, "weight": weight} for row, weight in zip(rows, given, strict=True)]
        place.objects.put("data/lines", b"\n".join(msgspec.json.encode(line) for line in lines))
        data = DataSpec(training_key="data/lines", validation_fraction=0.0, max_tokens=400)
        found = losses(place.with_spec(data=data, n_epochs=1, batch_size=2).train()[0])[0]
        place.objects.delete("data/lines")
        return found

    both, heavy, other = loss(1, 1), loss(4, 1), loss(1, 4)
    assert loss(2, 2) == pytest.approx(both, rel=1e-6)
    assert heavy != pytest.approx(other, rel=1e-4)
    assert min(heavy, other) < both < max(heavy, other)


def test_evaluation_every_n_steps_is_beside_the_epochs(place: Bench) -> None:
    """Full validation at every third step and at epoch ends."""
    records, _ = place.with_spec(watch=WatchSpec(evaluate_every=3)).train()
    assert [r.step for r in records if r.full_valid_loss is not None] == [0, 3, 5, 6, 9, 10]


def test_early_stopping_counts_evaluations_without_a_fall(place: Bench) -> None:
    """With a threshold that nothing reaches, the run ends after the first and `patience` more full validations."""
    watch = WatchSpec(evaluate_every=1, patience=2, threshold=100.0)
    records, state = place.with_spec(watch=watch).train()
    assert [r.step for r in records] == [0, 1, 2, 3]
    assert records[-1].last
    assert records[-1].keep
    assert state.step < place.prepare()[0].plan.total_steps


def test_best_step_has_the_lowest_loss_and_a_checkpoint(place: Bench) -> None:
    """At a rate that overshoots, the best step is not the last; it was kept, becomes the model, and the state knows it
    after a resume."""
    here = place.with_spec(
        watch=WatchSpec(evaluate_every=2, best=True),
        optimizer=OptimizerSpec(kind="lion", learning_rate=0.03),
        schedule=ScheduleSpec(kind="constant"),
        n_epochs=3,
    )
    records, state = here.train()
    measured = {r.step: r.full_valid_loss for r in records[1:] if r.full_valid_loss is not None}
    assert state.best.step == min(measured, key=lambda step: measured[step])
    assert state.best.step in {r.step for r in records if r.keep}
    told = here.folder("run-whole")
    result = train_run(here.objects, told, Reporter(told), cache=here.root / "cache")
    assert result.data["model_step"] == state.best.step < result.step
    folder = here.folder("run-best")
    job, first = here.prepare()
    for record in itertools.islice(train(job, first), 8):
        if record.step == 7:
            save_state(here.objects, folder, first)
    job, second = here.with_spec(earlier_runs=(folder.run_id,)).prepare()
    assert second.best == first.best
    assert list(train(job, second))
    assert second.best == state.best


def test_checkpoints_every_second_epoch(place: Bench) -> None:
    """Of four epochs the second and the fourth keep a checkpoint; the last step always does."""
    records, _ = place.with_spec(n_epochs=4, watch=WatchSpec(checkpoint_epochs=2)).train()
    per_epoch = math.ceil(18 / 4)
    assert [r.step for r in records if r.keep] == [2 * per_epoch, 4 * per_epoch]
    records, _ = place.with_spec(n_epochs=3, watch=WatchSpec(checkpoint_epochs=2)).train()
    assert [r.step for r in records if r.keep] == [2 * per_epoch, 3 * per_epoch]


def test_a_watch_needs_validation_rows(place: Bench) -> None:
    """Early stopping without held-out rows is refused, not ignored."""
    data = DataSpec(training_key="data/train", validation_fraction=0.0, max_tokens=400)
    with pytest.raises(Exception, match="validation") as caught:
        place.with_spec(data=data, watch=WatchSpec(patience=1)).prepare()
    assert caught.value.code == "validation_needed"


def test_continuing_keeps_the_adapters_shape(place: Bench) -> None:
    """A job that continues an adapter with other targets or scale is refused with what would fit."""
    from smedje.training.checkpoint import save_checkpoint

    lora = LoraSpec(rank=4, alpha=8.0, targets=("q_proj",))
    _, state = place.with_spec(max_steps=1, lora=lora).train()
    key = save_checkpoint(place.objects, place.folder("run-shape"), state, base_model="tiny", metrics={})
    again = msgspec.structs.replace(lora, initial=key)
    assert set(place.with_spec(lora=again).prepare()[1].lora.weights()) == set(state.lora.weights())
    for other in ({"rslora": True}, {"targets": ("v_proj",)}, {"layers": (0,)}, {"rank": 8}):
        with pytest.raises(Exception, match="continue from") as caught:
            place.with_spec(lora=msgspec.structs.replace(again, **other)).prepare()
        assert caught.value.code == "adapter_mismatch"
