"""From a spec to a job and a state that the loop can train, and from the loop's records to events.

Knows object storage, the tokenizer and the decoder; refuses to know run folders' timing and process matters.
"""

import math
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from smedje.data.encode import EncodedDataset, encode_file
from smedje.data.split import split_rows
from smedje.domain.runs import RunEvent
from smedje.errors import InvalidRequest
from smedje.modeling.adapter import load_adapter
from smedje.modeling.config import targets_of
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora
from smedje.objects.run_folder import RunFolder
from smedje.objects.store import Objects
from smedje.training.checkpoint import load_latest_state
from smedje.training.loop import Job, Rows, State, StepRecord
from smedje.training.optimizer import make_optimizer
from smedje.training.resolve import Plan, resolve_plan
from smedje.training.spec import TrainingSpec


def prepare(objects: Objects, spec: TrainingSpec, *, cache: Path) -> tuple[Job, State]:
    """Load data and base model, resolve "auto", and continue the newest saved state of an earlier run, if any."""
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    base = Path(spec.base_folder)
    training, validation = load_rows(
        objects, spec, load_chat_tokenizer(base, today=date.fromisoformat(spec.today)), cache=cache
    )
    plan = resolve_plan(
        rows=len(training.indices),
        n_epochs=spec.n_epochs,
        batch_size=spec.batch_size,
        optimizer=spec.optimizer,
        warmup_ratio=spec.schedule.warmup_ratio,
        max_steps=spec.max_steps,
    )
    job = Job(
        plan=plan,
        training=training,
        validation=validation,
        seed=spec.seed,
        max_grad_norm=spec.optimizer.max_grad_norm,
        micro_batch_tokens=spec.micro_batch_tokens,
        device=spec.device,
    )
    state = fresh_state(objects, spec, base, cache=cache)
    for run_id in spec.earlier_runs:
        if load_latest_state(objects, RunFolder(objects, run_id), state):
            break
    return job, state


def load_rows(
    objects: Objects, spec: TrainingSpec, tokenizer: ChatTokenizer, *, cache: Path
) -> tuple[Rows, Rows | None]:
    """Training rows and held-out rows: a validation file, a seeded share of the training file, or none."""

    def encoded(key: str) -> EncodedDataset:
        return encode_file(objects.local_path(key, cache), tokenizer, max_tokens=spec.data.max_tokens)

    dataset = encoded(spec.data.training_key)
    everything: Sequence[int] = range(len(dataset))
    if spec.data.validation_key is not None:
        held_out = encoded(spec.data.validation_key)
        return Rows(dataset=dataset, indices=everything), Rows(dataset=held_out, indices=range(len(held_out)))
    if spec.data.validation_fraction == 0:
        return Rows(dataset=dataset, indices=everything), None
    chosen, held = split_rows(
        len(dataset), seed=spec.seed, validation_fraction=spec.data.validation_fraction, groups=dataset.groups
    )
    return Rows(dataset=dataset, indices=chosen), Rows(dataset=dataset, indices=held) if held else None


def fresh_state(objects: Objects, spec: TrainingSpec, base: Path, *, cache: Path) -> State:
    """The base model with a new adapter, or with the adapter that training continues from; nothing trained yet."""
    decoder = load_decoder(base, dtype=torch.float32, device=spec.device)
    config = AdapterConfig(
        rank=spec.lora.rank,
        alpha=spec.lora.alpha,
        dropout=spec.lora.dropout,
        targets=targets_of(decoder.slots),
    )
    weights = None
    if spec.initial_adapter is not None:
        weights, given = load_adapter(objects.local_folder(spec.initial_adapter, cache))
        if (given.rank, given.alpha) != (config.rank, config.alpha):
            raise InvalidRequest(
                f"The model to continue from has rank {given.rank} and alpha {given.alpha:g}; this job asks for rank "
                f"{config.rank} and alpha {config.alpha:g}. Leave lora_rank and lora_alpha out to keep them.",
                code="adapter_mismatch",
                param="smedje.lora_rank",
            )
    lora = TrainableLora(decoder.slots, config, generator=torch.Generator().manual_seed(spec.seed), device=spec.device)
    if weights is not None:
        lora.load_weights(weights)
    return State(decoder=decoder, lora=lora, optimizer=make_optimizer(lora.parameters(), spec.optimizer))


def resolved_event(spec: TrainingSpec, job: Job, state: State, *, load_seconds: float) -> RunEvent:
    """What "auto" became, in one event; the control plane keeps `data` with the job."""
    plan = job.plan
    data: dict[str, Any] = {
        "n_epochs": plan.n_epochs,
        "batch_size": plan.batch_size,
        "learning_rate_multiplier": plan.learning_rate_multiplier,
        "learning_rate": plan.learning_rate,
        "total_steps": plan.total_steps,
        "warmup_steps": plan.warmup_steps,
        "training_examples": len(job.training.indices),
        "validation_examples": len(job.validation.indices) if job.validation else 0,
        "lora_rank": spec.lora.rank,
        "lora_alpha": spec.lora.alpha,
        "trainable_parameters": sum(p.numel() for p in state.lora.parameters()),
        "seed": spec.seed,
        "threads": spec.threads,
        "device": spec.device,
        "load_seconds": round(load_seconds, 3),
        "resumed_from_step": state.step,
    }
    again = f" Continuing after step {state.step}." if state.step else ""
    message = (
        f"Training {data['training_examples']} examples for {plan.n_epochs} epochs in batches of {plan.batch_size}: "
        f"{plan.total_steps} steps, learning rate {plan.learning_rate:g}, "
        f"{data['validation_examples']} examples held out.{again}"
    )
    return RunEvent(kind="resolved", at=time.time(), message=message, data=data)


def record_event(record: StepRecord, plan: Plan, *, speed: tuple[int, float] | None = None) -> RunEvent:
    """A step record as an event with OpenAI's metric names. speed: steps done in this run and the seconds they took."""
    data: dict[str, Any] = {"step": record.step, "total_steps": plan.total_steps}
    figures = {
        "train_loss": record.train_loss,
        "train_mean_token_accuracy": record.train_accuracy,
        "valid_loss": record.valid_loss,
        "valid_mean_token_accuracy": record.valid_accuracy,
        "full_valid_loss": record.full_valid_loss,
        "full_valid_mean_token_accuracy": record.full_valid_accuracy,
    }
    data.update({name: value for name, value in figures.items() if value is not None})
    if record.step == 0:
        perplexity = math.exp(min(record.full_valid_loss or 0.0, 700.0))
        message = f"Base model before training: full validation loss={record.full_valid_loss:.4f}, "
        return RunEvent(kind="validation", at=time.time(), message=message + f"perplexity={perplexity:.2f}", data=data)
    data.update(
        learning_rate=record.learning_rate,
        grad_norm=record.grad_norm,
        tokens_per_second=record.tokens / record.seconds,
        labelled_tokens=record.labelled,
        epoch=math.ceil(record.step / plan.steps_per_epoch),
    )
    if speed is not None and speed[0] > 0:
        data["eta_seconds"] = (plan.total_steps - record.step) * speed[1] / speed[0]
    message = f"Step {record.step}/{plan.total_steps}: training loss={record.train_loss:.2f}"
    if record.full_valid_loss is not None:
        message += f", full validation loss={record.full_valid_loss:.2f}"
    elif record.valid_loss is not None:
        message += f", validation loss={record.valid_loss:.2f}"
    return RunEvent(kind="step", at=time.time(), message=message, data=data)
