"""What a training worker is told: one frozen struct per part, JSON in the run folder, extras refused. No torch."""

from typing import Literal

import msgspec


class LoraSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The adapter to train on every linear of the base model; scale = alpha / rank."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0


class OptimizerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with gradient clipping by 2-norm.

    learning_rate: absolute peak rate; None means base model's rate times `multiplier`.
    """

    learning_rate: float | None = None
    multiplier: float = 1.0
    base_learning_rate: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


class ScheduleSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Linear warm-up over `warmup_ratio` of the steps, then a cosine down to zero."""

    kind: Literal["cosine"] = "cosine"
    warmup_ratio: float = 0.05


class DataSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the rows lie in object storage and how they are split.

    validation_fraction counts only when there is no validation file. max_tokens: longest example allowed.
    """

    training_key: str
    validation_key: str | None = None
    validation_fraction: float = 0.2
    max_tokens: int = 2048


class TrainingSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run.

    base_folder: installed base model on the worker's disk. initial_adapter: object-storage prefix of the adapter
    that training continues from, None for a fresh one. "auto" numbers are resolved by the worker and reported.
    today: the job's date (ISO 8601), which some chat templates print; fixed, so that a resume renders the same tokens.
    earlier_runs: ids of earlier attempts at this job, newest first; the newest whole saved state among them is resumed.
    micro_batch_tokens: most tokens in one flat stream. state_seconds: how often state for an exact resume is saved.
    threads: compute threads; part of the spec because sums depend on it and a resume must repeat them.
    """

    job_id: str
    base_model: str
    base_folder: str
    seed: int
    today: str
    data: DataSpec
    n_epochs: int | Literal["auto"] = "auto"
    batch_size: int | Literal["auto"] = "auto"
    max_steps: int | None = None
    lora: LoraSpec = LoraSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    initial_adapter: str | None = None
    earlier_runs: tuple[str, ...] = ()
    micro_batch_tokens: int = 2048
    state_seconds: float = 30.0
    device: str = "cpu"
    threads: int = 2


def spec_to_json(spec: TrainingSpec) -> bytes:
    """The spec as written to the run folder."""
    return msgspec.json.format(msgspec.json.encode(spec), indent=2)


def spec_from_json(raw: bytes) -> TrainingSpec:
    """The spec as read by the worker; raises msgspec.ValidationError for a field it does not know."""
    return msgspec.json.decode(raw, type=TrainingSpec)
