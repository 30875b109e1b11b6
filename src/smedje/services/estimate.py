"""What a job would take, before it is created: tokens, steps, time, memory, disk. Says what each guess rests on.

Counts are exact, because the job would count the same way. Time is a guess from earlier jobs or from arithmetic.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.data.preference import check_pair_tokens
from smedje.data.report import TokenStatistics
from smedje.data.split import split_rows
from smedje.data.validate import check_tokens
from smedje.domain.ids import JOB, new_id
from smedje.domain.jobs import FineTuningJob, JobStatus
from smedje.domain.projects import Project
from smedje.errors import InvalidData, NotFound
from smedje.modeling.catalog import find_base_model
from smedje.modeling.config import read_decoder_config
from smedje.modeling.folder import installed_folder
from smedje.services import files as file_service
from smedje.services.catalog import resolve_origin
from smedje.services.context import Context
from smedje.services.finetuning import check_draft
from smedje.services.job_request import JobDraft
from smedje.services.preflight import predicted_memory
from smedje.services.training_spec import build_spec, max_tokens
from smedje.store import usage as usage_rows
from smedje.training.memory import adapter_parameters, weight_parameters
from smedje.training.resolve import Plan, resolve_plan
from smedje.training.spec import TrainingSpec

# LoRA costs about 4 floating-point operations a weight and token: forward, and backward through the activations.
OPERATIONS_PER_WEIGHT = 4
# What one core sustains in fp32 with AVX2, of a peak of about 75e9; measured with the product's own training loop.
OPERATIONS_PER_CORE_SECOND = 45e9
# A worker imports its libraries and loads the base model before the first step.
START_SECONDS = 5.0
LEARNT_SECONDS = 30 * 24 * 3600
SHOWN_PROBLEMS = 3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A prediction. Tokens are real tokens of the base model's tokenizer, without padding.

    rows, validation_rows: examples after the split. trained_tokens: all tokens of the training rows over all epochs, as
    the job and usage count them. labelled_tokens: those of them that are learnt. seconds: without waiting in the queue.
    memory_bytes: peak of the training process. disk_bytes: checkpoints. fits: whether the machine has the memory.
    basis: what `seconds` rests on, in words.
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
    tokens_per_second: float
    memory_bytes: int
    disk_bytes: int
    fits: bool
    basis: str


def estimate(ctx: Context, project: Project, draft: JobDraft) -> Estimate:
    """The prediction for a job that `create_job` would accept.

    Raises what `create_job` raises, and InvalidData when examples are too long for the base model or its template
    refuses them.
    """
    request = check_draft(ctx, project, draft)
    origin = resolve_origin(ctx, project.id, request.model)
    now = ctx.seconds()
    # Never stored: the spec of a job is made from a job.
    job = FineTuningJob(
        id=new_id(JOB), project_id=project.id, request=request, status=JobStatus.VALIDATING_FILES, created_at=now
    )
    spec = build_spec(ctx, job, origin, threads=1, earlier_runs=())
    found = _tokens(ctx, project, job, "training_file", request.training_file)
    rows, held_out = found.examples, 0
    if request.validation_file is not None:
        held_out = _tokens(ctx, project, job, "validation_file", request.validation_file).examples
    elif spec.data.validation_fraction > 0:
        chosen, held = split_rows(found.examples, seed=spec.seed, validation_fraction=spec.data.validation_fraction)
        rows, held_out = len(chosen), len(held)
    plan = resolve_plan(rows, spec)
    passes = plan.total_steps / plan.steps_per_epoch * rows / max(1, found.examples)
    tokens = round(found.tokens * passes)
    seconds, basis = _seconds(ctx, project, spec, tokens=tokens)
    memory = predicted_memory(spec)
    return Estimate(
        rows=rows,
        validation_rows=held_out,
        trained_tokens=tokens,
        labelled_tokens=round(found.trained_tokens * passes),
        n_epochs=plan.n_epochs,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        steps=plan.total_steps,
        seconds=round(START_SECONDS + seconds, 1),
        tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
        memory_bytes=memory,
        disk_bytes=_disk(spec, plan),
        fits=memory <= psutil.virtual_memory().total and _disk(spec, plan) <= shutil.disk_usage(ctx.home).free,
        basis=basis,
    )


def _tokens(ctx: Context, project: Project, job: FineTuningJob, param: str, file_id: str) -> TokenStatistics:
    file = file_service.get_file(ctx, project, file_id)
    tokenizer = load_chat_tokenizer(installed_folder(ctx.home, job.request.base_model))
    check = check_pair_tokens if job.request.method == "dpo" else check_tokens
    problems, found = check(file_service.local_bytes(ctx, file), tokenizer, max_tokens=max_tokens(job))
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        shown = " ".join(f"Line {one.line}: {one.message} {one.remedy}" for one in errors[:SHOWN_PROBLEMS])
        more = f" And {len(errors) - SHOWN_PROBLEMS} more." if len(errors) > SHOWN_PROBLEMS else ""
        raise InvalidData(f"{param}: {file.id}: {shown}{more}", code=errors[0].code, param=param)
    return found


def _seconds(ctx: Context, project: Project, spec: TrainingSpec, *, tokens: int) -> tuple[float, str]:
    """Predicted seconds and what they rest on: this project's own jobs on the base model, or arithmetic."""
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        totals = usage_rows.sum_usage(tx, project.id, now - LEARNT_SECONDS, now + 1)
    for total in totals:
        if total.kind == "training" and total.model == spec.base_model and total.trained_tokens and total.seconds:
            counted = "the job" if total.records == 1 else f"the {total.records} jobs"
            basis = f"{counted} on {spec.base_model} that finished in this project in the last 30 days"
            return tokens * total.seconds / total.trained_tokens, basis
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    work = tokens * OPERATIONS_PER_WEIGHT * _parameters(spec)
    basis = (
        f"arithmetic for {cores} CPU cores: no job on {spec.base_model} has finished in this project yet, "
        "so it may be wrong by a factor of two"
    )
    return work / (OPERATIONS_PER_CORE_SECOND * cores), basis


def _parameters(spec: TrainingSpec) -> int:
    try:
        return find_base_model(spec.base_model).parameters
    except NotFound:
        return weight_parameters(read_decoder_config(Path(spec.base_folder)))


def _disk(spec: TrainingSpec, plan: Plan) -> int:
    """One adapter an epoch in fp32, and the two saved states with weights and moments."""
    adapter = 4 * adapter_parameters(read_decoder_config(Path(spec.base_folder)), spec.lora.rank)
    return adapter * (plan.n_epochs + 2 * 3)
