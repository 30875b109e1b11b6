"""What a run says: its resolved numbers and each step's figures as events, with OpenAI's metric names.

Knows plans and the loop's records; refuses to know where events go.
"""

import math
import time
from typing import Any

import psutil

from smedje.domain.runs import RunEvent
from smedje.training.loop import Job, State, StepRecord
from smedje.training.precision import precision_of
from smedje.training.spec import TrainingSpec

ACCURACY_NAMES = {"supervised": "mean_token_accuracy", "dpo": "reward_accuracy", "classification": "accuracy"}


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
        "tuning": "full" if spec.lora.full else "lora",
        **({} if spec.lora.full else {"lora_rank": spec.lora.rank, "lora_alpha": spec.lora.alpha}),
        "trainable_parameters": sum(p.numel() for p in state.trained().values()),
        "optimizer": spec.optimizer.kind,
        "scheduler": spec.schedule.kind,
        "loss": "dpo" if spec.objective.kind == "dpo" else spec.objective.loss.kind,
        "seed": spec.seed,
        "threads": spec.threads,
        "device": spec.device,
        "precision": precision_of(state.decoder),
        "load_seconds": round(load_seconds, 3),
        "resumed_from_step": state.step,
    }
    if spec.lora.dora:
        data["dora"] = True
    if spec.objective.neftune_alpha:
        data["neftune_alpha"] = spec.objective.neftune_alpha
    if spec.objective.kind == "dpo":
        data["beta"] = spec.objective.beta
    again = f" Continuing after step {state.step}." if state.step else ""
    message = (
        f"Training {data['training_examples']} examples for {plan.n_epochs} epochs in batches of {plan.batch_size}: "
        f"{plan.total_steps} steps, learning rate {plan.learning_rate:g}, "
        f"{data['validation_examples']} examples held out.{again}"
    )
    return RunEvent(kind="resolved", at=time.time(), message=message, data=data)


def record_event(record: StepRecord, job: Job, *, speed: tuple[int, float] | None = None) -> RunEvent:
    """A step record as an event with OpenAI's metric names. speed: steps done in this run and the seconds they took."""
    plan, accuracy = job.plan, ACCURACY_NAMES[job.objective.kind]
    data: dict[str, Any] = {"step": record.step, "total_steps": plan.total_steps}
    figures = {
        "train_loss": record.train_loss,
        f"train_{accuracy}": record.train_accuracy,
        "valid_loss": record.valid_loss,
        f"valid_{accuracy}": record.valid_accuracy,
        "full_valid_loss": record.full_valid_loss,
        f"full_valid_{accuracy}": record.full_valid_accuracy,
    }
    data.update({name: value for name, value in figures.items() if value is not None})
    data.update(record.more)
    if record.step == 0:
        message = f"Base model before training: full validation loss={record.full_valid_loss:.4f}"
        if job.objective.kind == "supervised":
            message += f", perplexity={math.exp(min(record.full_valid_loss or 0.0, 700.0)):.2f}"
        return RunEvent(kind="validation", at=time.time(), message=message, data=data)
    data.update(
        learning_rate=record.learning_rate,
        grad_norm=record.grad_norm,
        tokens=record.tokens,
        tokens_per_second=record.tokens / record.seconds,
        labelled_tokens_per_second=record.labelled / record.seconds,
        computed_tokens_per_second=record.computed / record.seconds,
        labelled_tokens=record.labelled,
        memory_bytes=psutil.Process().memory_info().rss,
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
