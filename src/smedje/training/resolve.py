"""From "auto" to real numbers. Pure arithmetic on counts; no torch, no files.

Epochs follow the rule of OpenAI's cookbook (Chat_finetuning_data_prep): aim at 3, more for few rows, fewer for many.
The batch is 0.2 % of the training rows as Azure documents it, but at least 4, because steps of one row are noisy.
"""

import math
from dataclasses import dataclass

from smedje.training.spec import ScheduleSpec, TrainingSpec

TARGET_EPOCHS = 3
MIN_ROWS_SEEN = 100
MAX_ROWS_SEEN = 25_000
MAX_EPOCHS = 25


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers a run really uses.

    batch_size: rows an optimizer step, all factors included. learning_rate: peak. steps_per_epoch and total_steps
    count optimizer steps; warmup_steps of them rise linearly.
    """

    n_epochs: int
    batch_size: int
    learning_rate: float
    learning_rate_multiplier: float
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    schedule: ScheduleSpec


def auto_epochs(rows: int) -> int:
    """Epochs for a training set of `rows` rows."""
    if rows * TARGET_EPOCHS < MIN_ROWS_SEEN:
        return min(MAX_EPOCHS, max(1, MIN_ROWS_SEEN // rows))
    if rows * TARGET_EPOCHS > MAX_ROWS_SEEN:
        return max(1, MAX_ROWS_SEEN // rows)
    return TARGET_EPOCHS


def auto_batch_size(rows: int) -> int:
    """Examples per optimizer step for a training set of `rows` rows."""
    return min(256, max(4, round(rows * 0.002)), rows)


def resolve_plan(rows: int, spec: TrainingSpec) -> Plan:
    """The plan for `rows` training rows (after the validation split); rows must be at least 1."""
    epochs = auto_epochs(rows) if spec.n_epochs == "auto" else spec.n_epochs
    size = auto_batch_size(rows) if spec.batch_size == "auto" else spec.batch_size
    batch = min(max(1, round(size * spec.optimizer.batch_factor)), rows)
    per_epoch = math.ceil(rows / batch)
    total = per_epoch * epochs
    if spec.max_steps is not None:
        total = min(total, spec.max_steps)
    rate = spec.optimizer.learning_rate or spec.optimizer.base_learning_rate * spec.optimizer.multiplier
    warmup = spec.schedule.warmup_steps
    return Plan(
        n_epochs=epochs,
        batch_size=batch,
        learning_rate=rate,
        learning_rate_multiplier=rate / spec.optimizer.base_learning_rate,
        steps_per_epoch=per_epoch,
        total_steps=total,
        warmup_steps=min(total - 1, round(total * spec.schedule.warmup_ratio) if warmup is None else warmup),
        schedule=spec.schedule,
    )
