"""What is checked between "created" and "queued": every example's tokens against the base model, and memory.

Reads files and tokenizers; changes no row. The scheduler runs it beside its loop, because tokenising can take seconds.
"""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.data.counting import Counted, RowCounts, count_tokens
from smedje.domain.files import content_key
from smedje.domain.jobs import FineTuningJob, JobError
from smedje.errors import InvalidData, NotFound, SmedjeError
from smedje.modeling.config import read_decoder_config, read_raw_config, why_not_owned
from smedje.modeling.folder import installed_folder
from smedje.objects.machine import training_memory, usable_cores
from smedje.services.context import Context
from smedje.services.prediction import Estimate, predict, predicted_memory, prediction_key, propose
from smedje.services.training_spec import Origin, build_spec, max_tokens
from smedje.store import files as file_rows
from smedje.training.spec import TrainingSpec

SHOWN_PROBLEMS = 3


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A job that may run, with its predicted peak memory in bytes."""

    memory_bytes: int


def check_job(ctx: Context, job: FineTuningJob, origin: Origin) -> Checked | JobError:
    """Check the job's data and its need of memory and disk. A JobError says which lines, or how much of what."""
    try:
        counted = count_files(ctx, job)
        spec = build_spec(ctx, job, origin, threads=usable_cores(), earlier_runs=())
    except SmedjeError as problem:
        return JobError(code=problem.code, message=problem.message, param=problem.param)
    found = _too_long_for_serving(spec) or _memory(ctx, spec, counted["training_file"].rows)
    if not isinstance(found, Checked):
        return found
    guess = _guess(ctx, job, spec, counted)
    if guess is not None and ctx.objects.url.startswith("file:"):
        return no_disk(guess, shutil.disk_usage(ctx.home).free) or found
    return found


def no_disk(guess: Estimate, free: int) -> JobError | None:
    """The refusal of a job whose checkpoints and saved states would not fit into `free` bytes, None when they do."""
    if guess.disk_bytes <= free:
        return None
    return JobError(
        code="insufficient_disk",
        message=(
            f"Checkpoints and saved states need {guess.disk_bytes / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are "
            "free. Free some space, keep fewer checkpoints with smedje.checkpoint_every_epochs, or choose a smaller "
            "smedje.lora_rank."
        ),
        param="smedje.checkpoint_every_epochs",
    )


def count_files(ctx: Context, job: FineTuningJob) -> dict[str, Counted]:
    """The tokens of the job's files by field. Raises InvalidData when examples are too long for the base model or its
    template refuses them, and NotFound when a file was deleted."""
    tokenizer = load_chat_tokenizer(installed_folder(ctx.home, job.request.base_model))
    counted: dict[str, Counted] = {}
    for param, file_id in (
        ("training_file", job.request.training_file),
        ("validation_file", job.request.validation_file),
    ):
        if file_id is None:
            continue
        with ctx.database.transaction() as tx:
            file = file_rows.get_file(tx, job.project_id, file_id)
        if file is None:
            raise NotFound(f"The file {file_id} was deleted.", code="file_not_found", param=param)
        path = ctx.objects.local_path(content_key(file.sha256), ctx.home / "cache")
        found = count_tokens(path, tokenizer, max_tokens=max_tokens(job))
        if errors := [problem for problem in found.problems if problem.severity == "error"]:
            shown = " ".join(f"Line {p.line}: {p.message} {p.remedy}" for p in errors[:SHOWN_PROBLEMS])
            more = len(errors) - SHOWN_PROBLEMS
            rest = f" And {more} more; see the file's report." if more > 0 else ""
            raise InvalidData(f"{param}: {file_id}: {shown}{rest}", code=errors[0].code, param=param)
        counted[param] = found
    return counted


def held_out_rows(counted: Mapping[str, Counted]) -> int:
    """Rows of the validation file, 0 when there is none."""
    return len(counted["validation_file"].rows.tokens) if "validation_file" in counted else 0


def _guess(ctx: Context, job: FineTuningJob, spec: TrainingSpec, counted: Mapping[str, Counted]) -> Estimate | None:
    """What is predicted, kept to be compared with what the job takes. A job does not fail for want of it."""
    with suppress(SmedjeError):
        rows = counted["training_file"].rows
        guess = predict(ctx, job.project_id, spec, rows, held_out=held_out_rows(counted))
        ctx.objects.put(prediction_key(job.id), msgspec.json.encode(guess))
        return guess
    return None


def _memory(ctx: Context, spec: TrainingSpec, rows: RowCounts | None = None) -> Checked | JobError:
    need = predicted_memory(spec, rows)
    total = training_memory(spec.device)
    if need > total:
        return JobError(
            code="insufficient_memory",
            message=(
                f"Training {spec.base_model} needs about {need / 2**30:.1f} GiB and this machine has "
                f"{total / 2**30:.1f} GiB. "
                + (propose(ctx, spec, rows=rows) or "Choose a smaller base model or a smaller max_tokens_per_example.")
            ),
            param="model",
        )
    return Checked(memory_bytes=need)


def _too_long_for_serving(spec: TrainingSpec) -> JobError | None:
    """Longrope computes differently beyond the original context, where no engine serves: say so, do not mistrain."""
    folder = Path(spec.base_folder)
    if why_not_owned(read_raw_config(folder)) is not None:
        return None
    rope = read_decoder_config(folder).rope
    if rope.kind != "longrope" or spec.data.max_tokens <= rope.original_positions:
        return None
    return JobError(
        code="invalid_option",
        message=(
            f"max_tokens_per_example is {spec.data.max_tokens}; {spec.base_model} is tuned and served up to "
            f"{rope.original_positions} tokens. Choose at most that."
        ),
        param="smedje.max_tokens_per_example",
    )
