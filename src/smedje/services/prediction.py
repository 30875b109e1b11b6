"""From counted tokens to a prediction: steps, time with its error bar, memory, disk, and what would fit instead.

Time is learnt from the jobs that finished on this machine, or is arithmetic. Knows specs and counts; reads no file.
"""

import shutil
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec.structs import replace

from smedje.data.counting import RowCounts
from smedje.domain.jobs import FineTuningJob, JobStatus
from smedje.errors import NotFound
from smedje.modeling.catalog import find_base_model, load_catalog
from smedje.modeling.config import read_decoder_config, read_raw_config, why_not_owned
from smedje.modeling.folder import installed_models
from smedje.objects.machine import training_memory, usable_cores, usable_memory
from smedje.objects.run_folder import RunFolder
from smedje.services.context import Context
from smedje.store import jobs as job_rows
from smedje.store import runs as run_rows
from smedje.store import usage as usage_rows
from smedje.training.memory import (
    adapter_parameters,
    held_in_bf16,
    multiplied_in_bf16,
    predicted_bytes,
    stream_sizes,
    weight_parameters,
)
from smedje.training.resolve import Plan, resolve_plan
from smedje.training.spec import TrainingSpec

# LoRA costs about 4 floating-point operations a weight and token: forward, and backward through the activations.
OPERATIONS_PER_WEIGHT = 4
# What one core sustains in fp32 with AVX2, of a peak of about 75e9; measured with the product's own training loop.
OPERATIONS_PER_CORE_SECOND = 45e9
# A worker imports its libraries and loads the base model before the first step; said by so many of the newest jobs.
START_SECONDS = 5.0
START_JOBS = 3
LEARNT_SECONDS = 30 * 24 * 3600
LEARNT_JOBS = 200
# Fewer finished jobs than this say too little of how much their pace differs.
FEWEST_JOBS = 3
FACTOR_LEARNT, FACTOR_ARITHMETIC = 1.5, 2.0
SHORTEST_LIMIT = 256


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A prediction. Tokens are real tokens of the base model's tokenizer, without padding.

    rows, validation_rows: examples after the split; split_by_label: whether validation has its share of each label, or
    null when nothing was split off. trained_tokens: all tokens of the training rows over all epochs, as
    the job and usage count them. labelled_tokens: those of them that are learnt. seconds: without waiting in the queue.
    seconds_low, seconds_high: the error bar of `seconds`, as wide as finished jobs differ in pace.
    memory_bytes: peak of the training process. disk_bytes: checkpoints. fits: whether the machine has the memory.
    basis: what `seconds` rests on, in words. proposal: what would fit, None when this fits or nothing does.
    """

    rows: int
    validation_rows: int
    trained_tokens: int
    labelled_tokens: int
    n_epochs: int
    batch_size: int
    learning_rate: float
    steps: int
    seconds: float
    seconds_low: float
    seconds_high: float
    tokens_per_second: float
    memory_bytes: int
    disk_bytes: int
    fits: bool
    basis: str
    proposal: str | None = None
    split_by_label: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds before the first step and for one token, and what they rest on.

    low, high: how far finished jobs lie below and above such a prediction, as factors.
    """

    start: float
    seconds: float
    low: float
    high: float
    basis: str


def predict(ctx: Context, project_id: str, spec: TrainingSpec, found: RowCounts, *, held_out: int) -> Estimate:
    """The prediction of a run. found: rows of the training file. held_out: rows of a validation file, 0 for none."""
    chosen: Sequence[int] = range(len(found.tokens))
    by_label = None
    if held_out == 0 and spec.data.validation_fraction > 0:
        by_label = found.labels is not None
        # As training itself splits them, so that the counts are those of the job.
        chosen, held = found.split(seed=spec.seed, fraction=spec.data.validation_fraction)
        held_out = len(held)
    rows = len(chosen)
    plan = resolve_plan(rows, spec)
    passes = plan.total_steps / plan.steps_per_epoch
    tokens = round(sum(found.tokens[row] for row in chosen) * passes)
    pace = _pace(ctx, project_id, spec)
    seconds = tokens * pace.seconds
    memory, disk = predicted_memory(spec, found), _disk(spec, plan)
    fits = memory <= training_memory(spec.device)
    return Estimate(
        rows=rows,
        validation_rows=held_out,
        trained_tokens=tokens,
        labelled_tokens=round(sum(found.trained[row] for row in chosen) * passes),
        n_epochs=plan.n_epochs,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        steps=plan.total_steps,
        seconds=round(pace.start + seconds, 1),
        seconds_low=round((pace.start + seconds) * pace.low, 1),
        seconds_high=round((pace.start + seconds) * pace.high, 1),
        tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
        memory_bytes=memory,
        disk_bytes=disk,
        fits=fits and disk <= shutil.disk_usage(ctx.home).free,
        basis=pace.basis,
        proposal=None if fits else propose(ctx, spec, longest=max(found.tokens, default=0), rows=found),
        split_by_label=by_label,
    )


def propose(
    ctx: Context,
    spec: TrainingSpec,
    *,
    longest: int = 0,
    memory_bytes: int | None = None,
    rows: RowCounts | None = None,
) -> str | None:
    """The nearest change with which `spec` fits into the machine's memory, as a sentence; None when there is none.

    longest: tokens of the longest example, below which no limit is proposed. memory_bytes: None for this machine's.
    rows: the training file's, where they are known. Smaller streams come first, because they change no result.
    """
    room = training_memory(spec.device) if memory_bytes is None else memory_bytes
    tokens, least = spec.micro_batch_tokens, SHORTEST_LIMIT if rows is not None else max(longest, SHORTEST_LIMIT)
    while tokens // 2 >= least:
        tokens //= 2
        need = predicted_memory(replace(spec, micro_batch_tokens=tokens), rows)
        if need <= room:
            return f"With micro_batch_tokens {tokens} it needs about {need / 2**30:.1f} GiB and fits."
    if not spec.lora.recompute and spec.lora.dropout == 0:
        again = replace(spec, lora=replace(spec.lora, recompute=True), micro_batch_tokens=max(tokens, longest))
        need = predicted_memory(again, rows)
        if longest <= spec.data.max_tokens and need <= room:
            return (
                f"With recompute and micro_batch_tokens {again.micro_batch_tokens} it needs about "
                f"{need / 2**30:.1f} GiB and fits."
            )
    limit = max(spec.data.max_tokens, spec.micro_batch_tokens)
    while limit // 2 >= max(longest, SHORTEST_LIMIT):
        limit //= 2
        smaller = replace(
            spec,
            data=replace(spec.data, max_tokens=min(spec.data.max_tokens, limit)),
            micro_batch_tokens=min(spec.micro_batch_tokens, limit),
        )
        need = predicted_memory(smaller)
        if need <= room:
            return (
                f"With max_tokens_per_example {smaller.data.max_tokens} and micro_batch_tokens "
                f"{smaller.micro_batch_tokens} it needs about {need / 2**30:.1f} GiB and fits."
            )
    if spec.lora.full:
        adapted = replace(spec, lora=replace(spec.lora, full=False, initial=None))
        need = predicted_memory(adapted)
        if need <= room:
            return f"With smedje.tuning lora it needs about {need / 2**30:.1f} GiB and fits."
    catalog = load_catalog()
    fitting = [
        catalog[one.name]
        for one in installed_models(ctx.home)
        if one.name != spec.base_model and one.name in catalog and catalog[one.name].memory_training_bytes <= room
    ]
    if not fitting:
        return None
    best = max(fitting, key=lambda model: model.parameters)
    return f"The installed base model {best.name} needs about {best.memory_training_bytes / 2**30:.1f} GiB and fits."


def predicted_memory(spec: TrainingSpec, rows: RowCounts | None = None) -> int:
    """Peak resident bytes that a run should need: from shapes, or from the catalog for other architectures.

    rows: the training file's, where they are known; else the largest that the spec allows.
    """
    folder = Path(spec.base_folder)
    raw = read_raw_config(folder)
    if why_not_owned(raw) is not None:
        return find_base_model(spec.base_model).memory_training_bytes
    config = read_decoder_config(folder)
    streams = (
        None if rows is None or not rows.tokens else stream_sizes(spec, rows.tokens, rows.trained, shared=rows.shared)
    )
    kept = not spec.lora.full and held_in_bf16(raw, config, memory_bytes=usable_memory())
    kept = kept or multiplied_in_bf16(spec)
    return predicted_bytes(config, spec, streams, weight_bytes=2 if kept else 4)


def prediction_key(job_id: str) -> str:
    """Where it is kept what was predicted for a job."""
    return f"predictions/{job_id}.json"


def job_memory(ctx: Context, job_id: str, spec: TrainingSpec) -> int:
    """Peak resident bytes that a checked job should need: as predicted with its rows, else from its spec."""
    with suppress(NotFound, msgspec.DecodeError):
        return msgspec.json.decode(ctx.objects.get(prediction_key(job_id)), type=Estimate).memory_bytes
    return predicted_memory(spec)


def _pace(ctx: Context, project_id: str, spec: TrainingSpec) -> Pace:
    """This project's own pace on the base model, or arithmetic."""
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        totals = usage_rows.sum_usage(tx, project_id, now - LEARNT_SECONDS, now + 1)
        jobs = job_rows.list_jobs(tx, project_id, limit=LEARNT_JOBS)
    for total in totals:
        if total.kind == "training" and total.model == spec.base_model and total.trained_tokens and total.seconds:
            counted = "the job" if total.records == 1 else f"the {total.records} jobs"
            basis = f"{counted} on {spec.base_model} that finished in this project in the last 30 days"
            finished = [
                job
                for job in jobs
                if job.status is JobStatus.SUCCEEDED
                and job.request.base_model == spec.base_model
                and job.finished_at is not None
                and job.finished_at > now - LEARNT_SECONDS
            ]
            start, seconds = _start(ctx, finished[:START_JOBS]), total.seconds / total.trained_tokens
            low, high = _spread(finished, start, seconds)
            return Pace(start=start, seconds=seconds, low=low, high=high, basis=basis)
    cores = usable_cores()
    work = OPERATIONS_PER_WEIGHT * _parameters(spec) / (OPERATIONS_PER_CORE_SECOND * cores)
    basis = (
        f"arithmetic for {cores} CPU cores: no job on {spec.base_model} has finished in this project yet, "
        "so it may be wrong by a factor of two"
    )
    return Pace(start=START_SECONDS, seconds=work, low=1 / FACTOR_ARITHMETIC, high=FACTOR_ARITHMETIC, basis=basis)


def _start(ctx: Context, jobs: Sequence[FineTuningJob]) -> float:
    """Seconds before the first step, the median of what these jobs' last runs told."""
    with ctx.database.transaction() as tx:
        runs = [run_rows.latest_run(tx, job.id) for job in jobs]
    results = [RunFolder(ctx.objects, run.id).read_result() for run in runs if run is not None]
    told = [float(one.data["start_seconds"]) for one in results if one is not None and "start_seconds" in one.data]
    return statistics.median(told) if told else START_SECONDS


def _spread(jobs: Sequence[FineTuningJob], start: float, seconds: float) -> tuple[float, float]:
    """The fastest and slowest of finished jobs against what would be predicted now; a fixed factor for too few."""
    ratios = [
        (job.finished_at - job.started_at) / (start + job.trained_tokens * seconds)
        for job in jobs
        if job.trained_tokens and job.finished_at and job.started_at and job.finished_at > job.started_at
    ]
    if len(ratios) < FEWEST_JOBS:
        return 1 / FACTOR_LEARNT, FACTOR_LEARNT
    return min(1.0, *ratios), max(1.0, *ratios)


def _parameters(spec: TrainingSpec) -> int:
    try:
        return find_base_model(spec.base_model).parameters
    except NotFound:
        return weight_parameters(read_decoder_config(Path(spec.base_folder)))


def _disk(spec: TrainingSpec, plan: Plan) -> int:
    """One adapter, or all weights, a checkpoint in fp32, and the two saved states with weights and moments."""
    config = read_decoder_config(Path(spec.base_folder))
    trained = weight_parameters(config) if spec.lora.full else adapter_parameters(config, spec.lora.rank)
    checkpoints = -(-plan.n_epochs // spec.watch.checkpoint_epochs)
    return 4 * trained * (checkpoints + 2 * 3)
