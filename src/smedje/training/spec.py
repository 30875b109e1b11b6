"""What a training worker is told: one frozen struct per part, JSON in the run folder, extras refused. No torch."""

from typing import Literal

import msgspec

OptimizerKind = Literal["adamw", "adam", "sgd", "adafactor", "lion", "muon"]
ScheduleKind = Literal["cosine", "linear", "constant", "polynomial"]


class LoraSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is trained: with `full` every weight of the base model, else an adapter as follows.

    scale = alpha / rank, or alpha / sqrt(rank) with rslora (Kalajdzievski 2023).

    targets: last names of the linears to adapt, None for all. layers: numbers from 0, None for all; last_layers: only
    so many at the end, in place of `layers`. dora: magnitudes beside it (Liu et al. 2024). initial: object-storage
    prefix of the adapter that training continues from, with `full` also of weights; None for a fresh start.
    precision: what the frozen base model is multiplied in (training/precision.py). recompute: layers keep their input
    alone and are computed again in the backward pass: less memory, a third more time, the same bits.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    targets: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    last_layers: int | None = None
    dora: bool = False
    full: bool = False
    initial: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    recompute: bool = False


class LossSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The loss of one labelled row; see training/losses.py. Validation always measures plain cross-entropy."""

    kind: Literal["cross_entropy", "label_smoothing", "focal"] = "cross_entropy"
    smoothing: float = 0.1
    gamma: float = 2.0


class ObjectiveSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is minimised. supervised: the loss of labelled tokens. dpo: preference pairs, with `beta` (Rafailov 2023).

    classification: the loss of one label an example; balanced gives each class the same total weight, class_weights a
    weight by label name, 1 for those that are not named. neftune_alpha: size of the noise on embeddings in training
    steps, 0 for none (noise.py).
    """

    kind: Literal["supervised", "dpo", "classification"] = "supervised"
    loss: LossSpec = LossSpec()
    beta: float = 0.1
    balanced: bool = False
    class_weights: dict[str, float] = {}
    neftune_alpha: float = 0.0


class OptimizerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The update rule, with gradient clipping by 2-norm; see training/optimizer.py for the sources.

    learning_rate: absolute peak rate; None means base model's rate times `multiplier`. beta1, beta2: adamw, adam and
    lion; eps: adamw and adam; momentum: sgd and muon. batch_factor: rows of an update = batch size times this
    (multiplier times accumulated batches).
    """

    kind: OptimizerKind = "adamw"
    learning_rate: float | None = None
    multiplier: float = 1.0
    base_learning_rate: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    batch_factor: float = 1.0


class ScheduleSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Linear warm-up, then a fall to zero: as a cosine, a line or a power of what is left; or no fall at all.

    warmup_ratio: share of the steps that rise; warmup_steps, where given, counts instead. power: of `polynomial`.
    """

    kind: ScheduleKind = "cosine"
    warmup_ratio: float = 0.05
    warmup_steps: int | None = None
    power: float = 2.0


class WatchSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When all validation rows are measured, checkpoints are kept, and training stops.

    evaluate_every: steps between full validations, beside those at epoch ends. patience: stop after so many full
    validations in a row whose loss is not below the best by more than `threshold`; None never stops early.
    best: the fine-tuned model is the checkpoint with the lowest full validation loss, not the last one.
    checkpoint_epochs: epochs between checkpoints; the last step always has one.
    """

    evaluate_every: int | None = None
    patience: int | None = None
    threshold: float = 0.0
    best: bool = False
    checkpoint_epochs: int = 1


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

    base_folder: installed base model on the worker's disk. "auto" numbers are resolved by the worker and reported.
    today: the job's date (ISO 8601), which some chat templates print; fixed, so that a resume renders the same tokens.
    earlier_runs: ids of earlier attempts at this job, newest first; the newest whole saved state among them is resumed.
    micro_batch_tokens: most tokens in one flat stream. share_prefixes: compute what rows begin with alike once; exact,
    and left out where it would not be (adapter dropout, noise, attention windows) or has no kernel. state_seconds: how
    often state for an exact resume is saved.
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
    objective: ObjectiveSpec = ObjectiveSpec()
    watch: WatchSpec = WatchSpec()
    earlier_runs: tuple[str, ...] = ()
    micro_batch_tokens: int = 8192
    share_prefixes: bool = True
    state_seconds: float = 30.0
    device: str = "cpu"
    threads: int = 2


def spec_to_json(spec: TrainingSpec) -> bytes:
    """The spec as written to the run folder."""
    return msgspec.json.format(msgspec.json.encode(spec), indent=2)


def spec_from_json(raw: bytes) -> TrainingSpec:
    """The spec as read by the worker; raises msgspec.ValidationError for a field it does not know."""
    return msgspec.json.decode(raw, type=TrainingSpec)
