"""From "auto" to real numbers. Pure arithmetic on counts; no torch, no files.

Epochs follow the rule of OpenAI's cookbook (Chat_finetuning_data_prep): aim at 3, more for few rows, fewer for many.
The batch is 0.2 % of the training rows as Azure documents it, but at least 4, because steps of one row are noisy.
"""

import math
from dataclasses import dataclass
from typing import Literal

from smedje.training.spec import OptimizerSpec

TARGET_EPOCHS = 3
MIN_ROWS_SEEN = 100
MAX_ROWS_SEEN = 25_000
MAX_EPOCHS = 25


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers a run really uses.

    learning_rate: peak. steps_per_epoch and total_steps count optimizer steps; warmup_steps of them rise linearly.
    """

    n_epochs: int
    batch_size: int
    learning_rate: float
    learning_rate_multiplier: float
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int


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


def resolve_plan(
    *,
    rows: int,
    n_epochs: int | Literal["auto"],
    batch_size: int | Literal["auto"],
    optimizer: OptimizerSpec,
    warmup_ratio: float,
    max_steps: int | None,
) -> Plan:
    """The plan for `rows` training rows (after the validation split); rows must be at least 1."""
    epochs = auto_epochs(rows) if n_epochs == "auto" else n_epochs
    batch = min(auto_batch_size(rows) if batch_size == "auto" else batch_size, rows)
    per_epoch = math.ceil(rows / batch)
    total = per_epoch * epochs
    if max_steps is not None:
        total = min(total, max_steps)
    rate = optimizer.learning_rate or optimizer.base_learning_rate * optimizer.multiplier
    return Plan(
        n_epochs=epochs,
        batch_size=batch,
        learning_rate=rate,
        learning_rate_multiplier=rate / optimizer.base_learning_rate,
        steps_per_epoch=per_epoch,
        total_steps=total,
        warmup_steps=min(total - 1, round(total * warmup_ratio)),
    )
