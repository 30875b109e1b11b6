"""The one training loop: a generator of step records. Knows nothing of files, clocks on the wall or who is listening.

Everything random is a pure function of (seed, epoch, step): the order of rows, and the dropout masks. So the state
that an exact resume needs is the adapter, the optimizer's moments and two counters.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from smedje.data.batches import epoch_order, flat_batch, micro_batches
from smedje.data.encode import EncodedDataset
from smedje.modeling.lora import TrainableLora
from smedje.modeling.transformer import CausalDecoder
from smedje.training.objectives import Sums, supervised, to_tensors
from smedje.training.optimizer import rate_at, set_rate
from smedje.training.resolve import Plan

VALIDATE_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of an encoded dataset: which part trains, which part is held out."""

    dataset: EncodedDataset
    indices: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What stays fixed while a run trains. micro_batch_tokens: most tokens in one flat stream."""

    plan: Plan
    training: Rows
    validation: Rows | None
    seed: int
    max_grad_norm: float
    micro_batch_tokens: int
    device: str


@dataclass
class State:
    """What changes: the adapter, the optimizer, and how far they have come. trained_tokens: all tokens of rows seen."""

    decoder: CausalDecoder
    lora: TrainableLora
    optimizer: torch.optim.AdamW
    step: int = 0
    trained_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step, or step 0: the untouched base model on the validation rows.

    Losses are mean nats a labelled token; accuracies the share of labelled tokens hit greedily. tokens: all tokens in
    the step, labelled: those with a loss. seconds: the step's own time, validation left out.
    """

    step: int
    epoch_end: bool = False
    train_loss: float | None = None
    train_accuracy: float | None = None
    valid_loss: float | None = None
    valid_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_accuracy: float | None = None
    learning_rate: float = 0.0
    grad_norm: float = 0.0
    tokens: int = 0
    labelled: int = 0
    seconds: float = 0.0


def train(job: Job, state: State) -> Iterator[StepRecord]:
    """Train from `state.step` to the plan's end, changing `state`; it is whole and savable at every yield."""
    if state.step == 0 and job.validation is not None:
        loss, accuracy = validate(job, state, job.validation.indices)
        yield StepRecord(step=0, full_valid_loss=loss, full_valid_accuracy=accuracy)
    order: list[int] = []
    order_epoch = -1
    while state.step < job.plan.total_steps:
        epoch, place = divmod(state.step, job.plan.steps_per_epoch)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(len(job.training.indices), seed=job.seed, epoch=epoch), epoch
        start = place * job.plan.batch_size
        chosen = [job.training.indices[i] for i in order[start : start + job.plan.batch_size]]
        yield _with_validation(job, state, _optimizer_step(job, state, chosen))


def _optimizer_step(job: Job, state: State, chosen: Sequence[int]) -> StepRecord:
    """Forward and backward over the rows in micro-batches, one division by the whole step's weight, one update."""
    began = time.perf_counter()
    rate = rate_at(state.step, job.plan)
    set_rate(state.optimizer, rate)
    state.lora.train()
    state.lora.set_rng_state(_dropout_stream(job, state.step))
    state.optimizer.zero_grad(set_to_none=True)
    sums = [_backward(job, state, part) for part in _parts(job, job.training, chosen)]
    weight = sum(s.weight for s in sums)
    parameters = [p for p in state.lora.parameters() if p.grad is not None]
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.div_(weight)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, job.max_grad_norm, foreach=False))
    state.optimizer.step()
    tokens = sum(job.training.dataset.length(i) for i in chosen)
    state.step += 1
    state.trained_tokens += tokens
    loss, accuracy = _means(sums)
    return StepRecord(
        step=state.step,
        epoch_end=state.step % job.plan.steps_per_epoch == 0 or state.step == job.plan.total_steps,
        train_loss=loss,
        train_accuracy=accuracy,
        learning_rate=rate,
        grad_norm=norm,
        tokens=tokens,
        labelled=sum(s.count for s in sums),
        seconds=time.perf_counter() - began,
    )


def _dropout_stream(job: Job, step: int) -> torch.Tensor:
    """The random state that a step's dropout masks are drawn from: a function of seed and step alone."""
    return torch.Generator(device=job.device).manual_seed(job.seed * 1_000_003 + step).get_state()


def _parts(job: Job, rows: Rows, chosen: Sequence[int]) -> Iterator[list[int]]:
    """The chosen rows in groups that each fit one flat stream."""
    lengths = [rows.dataset.length(i) for i in chosen]
    for group in micro_batches(lengths, token_budget=job.micro_batch_tokens):
        yield [chosen[i] for i in group]


def _backward(job: Job, state: State, indices: Sequence[int]) -> Sums:
    batch = to_tensors(flat_batch(job.training.dataset, indices), job.device)
    sums = supervised(state.decoder, state.lora, batch)
    sums.loss.backward()  # type: ignore[no-untyped-call]
    return sums


def _means(sums: Sequence[Sums]) -> tuple[float, float]:
    """Weighted mean loss and accuracy. A non-finite loss is returned as it is: hiding it would be a lie."""
    weight = sum(s.weight for s in sums)
    count = sum(s.count for s in sums)
    return math.fsum(float(s.loss.detach()) for s in sums) / weight, sum(s.correct for s in sums) / count


def _with_validation(job: Job, state: State, record: StepRecord) -> StepRecord:
    """The record with validation figures where they are due: a batch every ten steps, all rows at an epoch's end."""
    if job.validation is None:
        return record
    if record.epoch_end:
        loss, accuracy = validate(job, state, job.validation.indices)
        record = replace(record, full_valid_loss=loss, full_valid_accuracy=accuracy)
    if record.epoch_end or state.step % VALIDATE_EVERY == 0:
        rows = job.validation.indices
        size = min(job.plan.batch_size, len(rows))
        first = (state.step // VALIDATE_EVERY * size) % len(rows)
        loss, accuracy = validate(job, state, [rows[(first + i) % len(rows)] for i in range(size)])
        record = replace(record, valid_loss=loss, valid_accuracy=accuracy)
    return record


def validate(job: Job, state: State, indices: Sequence[int]) -> tuple[float, float]:
    """Mean loss (nats a labelled token) and token accuracy of these validation rows, dropout off."""
    assert job.validation is not None
    state.lora.eval()
    with torch.inference_mode():
        sums = [
            supervised(state.decoder, state.lora, to_tensors(flat_batch(job.validation.dataset, part), job.device))
            for part in _parts(job, job.validation, indices)
        ]
    return _means(sums)
