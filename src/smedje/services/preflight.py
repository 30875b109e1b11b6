"""What is checked between "created" and "queued": every example's tokens against the base model, and memory.

Reads files and tokenizers; changes no row. The scheduler runs it beside its loop, because tokenising can take seconds.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.data.preference import check_pair_tokens
from smedje.data.problems import Problem
from smedje.data.report import TokenStatistics
from smedje.data.validate import check_tokens
from smedje.domain.files import content_key
from smedje.domain.jobs import FineTuningJob, JobError
from smedje.errors import SmedjeError
from smedje.modeling.config import read_decoder_config, read_raw_config, why_not_owned
from smedje.modeling.folder import installed_folder
from smedje.services.context import Context
from smedje.services.prediction import predict, predicted_memory, prediction_key, propose
from smedje.services.training_spec import Origin, build_spec, max_tokens
from smedje.store import files as file_rows
from smedje.training.spec import TrainingSpec

SHOWN_PROBLEMS = 3


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A job that may run, with its predicted peak memory in bytes."""

    memory_bytes: int


def check_job(ctx: Context, job: FineTuningJob, origin: Origin) -> Checked | JobError:
    """Check the job's data and its need of memory. A JobError says which lines, or how much memory."""
    counted: dict[str, TokenStatistics] = {}
    try:
        tokenizer = load_chat_tokenizer(installed_folder(ctx.home, origin.base_model))
        for param, file_id in (
            ("training_file", job.request.training_file),
            ("validation_file", job.request.validation_file),
        ):
            if file_id is None:
                continue
            with ctx.database.transaction() as tx:
                file = file_rows.get_file(tx, job.project_id, file_id)
            if file is None:
                return JobError(code="file_not_found", message=f"The file {file_id} was deleted.", param=param)
            path = ctx.objects.local_path(content_key(file.sha256), ctx.home / "cache")
            check = check_pair_tokens if job.request.method == "dpo" else check_tokens
            problems, counted[param] = check(path, tokenizer, max_tokens=max_tokens(job))
            if errors := [p for p in problems if p.severity == "error"]:
                return _data_error(errors, param, file_id)
        spec = build_spec(ctx, job, origin, threads=1, earlier_runs=())
    except SmedjeError as problem:
        return JobError(code=problem.code, message=problem.message, param=problem.param)
    found = _too_long_for_serving(spec) or _memory(ctx, spec)
    if isinstance(found, Checked):
        _remember(ctx, job, spec, counted)
    return found


def _data_error(errors: list[Problem], param: str, file_id: str) -> JobError:
    shown = " ".join(f"Line {p.line}: {p.message} {p.remedy}" for p in errors[:SHOWN_PROBLEMS])
    more = len(errors) - SHOWN_PROBLEMS
    rest = f" And {more} more; see the file's report." if more > 0 else ""
    return JobError(code=errors[0].code, message=f"{file_id}: {shown}{rest}", param=param)


def _remember(ctx: Context, job: FineTuningJob, spec: TrainingSpec, counted: Mapping[str, TokenStatistics]) -> None:
    """Keep what is predicted, to be compared with what the job takes. A job does not fail for want of it."""
    held_out = counted["validation_file"].examples if "validation_file" in counted else 0
    with suppress(SmedjeError):
        guess = predict(ctx, job.project_id, spec, counted["training_file"], held_out=held_out)
        ctx.objects.put(prediction_key(job.id), msgspec.json.encode(guess))


def _memory(ctx: Context, spec: TrainingSpec) -> Checked | JobError:
    need = predicted_memory(spec)
    total = psutil.virtual_memory().total
    if need > total:
        return JobError(
            code="insufficient_memory",
            message=(
                f"Training {spec.base_model} needs about {need / 2**30:.1f} GiB and this machine has "
                f"{total / 2**30:.1f} GiB. "
                + (propose(ctx, spec) or "Choose a smaller base model or a smaller max_tokens_per_example.")
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
