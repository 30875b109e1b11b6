"""From a job to the spec of its next run: catalog defaults, the request's numbers, where data and base model lie."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from smedje.domain.catalog import TrainingDefaults
from smedje.domain.files import content_key
from smedje.domain.jobs import FineTuningJob
from smedje.errors import NotFound
from smedje.modeling.catalog import base_defaults
from smedje.modeling.folder import installed_folder
from smedje.objects.machine import training_memory
from smedje.services.context import Context
from smedje.services.prediction import predicted_memory
from smedje.store import files as file_rows
from smedje.training.from_options import lora_spec, objective_spec, optimizer_spec, schedule_spec, watch_spec
from smedje.training.options import TrainingOptions, parse_options
from smedje.training.spec import DataSpec, LoraSpec, TrainingSpec

# Tokens of a flat stream where a job does not say: the most of these with which the longest rows it accepts fit into
# memory, or the fewest.
MICRO_BATCH_TOKENS = (8192, 4096, 2048)
# How often state for an exact resume is saved. All weights with their moments are gigabytes.
STATE_SECONDS, FULL_STATE_SECONDS = 30.0, 300.0


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What training starts from: a base model, and the adapter to continue, if any."""

    base_model: str
    adapter_key: str | None = None


def max_tokens(job: FineTuningJob) -> int:
    """The longest example that this job accepts, in tokens."""
    asked = parse_options(job.request.options).max_tokens_per_example
    return asked or base_defaults(job.request.base_model).max_tokens_per_example


def build_spec(
    ctx: Context, job: FineTuningJob, origin: Origin, *, threads: int, earlier_runs: Sequence[str]
) -> TrainingSpec:
    """The spec of the next run of `job`. Raises NotFound when a file or the base model has gone."""
    options = parse_options(job.request.options)
    asked = job.request.hyperparameters
    defaults = base_defaults(origin.base_model)
    batch_size = number_or_auto(asked.get("batch_size"))
    if batch_size == "auto" and defaults.batch_size:
        batch_size = defaults.batch_size
    multiplier, beta = asked.get("learning_rate_multiplier", "auto"), asked.get("beta", "auto")
    spec = TrainingSpec(
        job_id=job.id,
        base_model=origin.base_model,
        base_folder=str(installed_folder(ctx.home, origin.base_model)),
        seed=job.request.seed,
        today=datetime.fromtimestamp(job.created_at, UTC).date().isoformat(),
        data=_data(ctx, job, options),
        n_epochs=number_or_auto(asked.get("n_epochs")),
        batch_size=batch_size,
        max_steps=options.max_steps,
        lora=_lora(ctx, options, origin.adapter_key, defaults),
        optimizer=optimizer_spec(
            options,
            base_rate=defaults.learning_rate,
            multiplier=1.0 if multiplier == "auto" else float(multiplier),
        ),
        schedule=schedule_spec(options),
        objective=objective_spec(options, method=job.request.method, beta=None if beta == "auto" else float(beta)),
        watch=watch_spec(options),
        micro_batch_tokens=options.micro_batch_tokens or MICRO_BATCH_TOKENS[-1],
        share_prefixes=options.share_prefixes,
        state_seconds=FULL_STATE_SECONDS if options.tuning == "full" else STATE_SECONDS,
        earlier_runs=tuple(earlier_runs),
        threads=threads,
        device=ctx.device,
    )
    return spec if options.micro_batch_tokens else with_longest_streams(spec, training_memory(spec.device))


def with_longest_streams(spec: TrainingSpec, memory_bytes: int) -> TrainingSpec:
    """The spec with the longest usual streams that surely fit into so much memory, or the shortest."""
    choices = [msgspec.structs.replace(spec, micro_batch_tokens=tokens) for tokens in MICRO_BATCH_TOKENS]
    return next((choice for choice in choices if predicted_memory(choice) <= memory_bytes), choices[-1])


def number_or_auto(value: Any) -> int | Literal["auto"]:
    """A whole number, or "auto" for a value that was left out or is "auto"."""
    return "auto" if value is None or value == "auto" else int(value)


def _data(ctx: Context, job: FineTuningJob, options: TrainingOptions) -> DataSpec:
    def key(file_id: str) -> str:
        with ctx.database.transaction() as tx:
            file = file_rows.get_file(tx, job.project_id, file_id)
        if file is None:
            raise NotFound(f"The file {file_id} was deleted after the job was created.", code="file_not_found")
        return content_key(file.sha256)

    return DataSpec(
        training_key=key(job.request.training_file),
        validation_key=key(job.request.validation_file) if job.request.validation_file else None,
        validation_fraction=options.validation_fraction,
        max_tokens=max_tokens(job),
    )


def _lora(ctx: Context, options: TrainingOptions, adapter_key: str | None, defaults: TrainingDefaults) -> LoraSpec:
    """The adapter's shape: what was asked, else that of the adapter to continue, else the base model's default."""
    kept = LoraSpec(rank=defaults.lora_rank, alpha=float(defaults.lora_alpha))
    if adapter_key is not None and options.tuning == "lora":
        config = msgspec.json.decode(ctx.objects.get(f"{adapter_key}/adapter_config.json"))
        kept = LoraSpec(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
            targets=tuple(config["target_modules"]),
            layers=None if config.get("layers_to_transform") is None else tuple(config["layers_to_transform"]),
        )
    if ctx.device == "cuda":
        # GPUs multiply bf16 many times as fast as fp32, which is the exact choice to ask for there.
        kept = replace(kept, precision="bf16")
    return lora_spec(options, kept, initial=adapter_key)
