"""What was predicted for a job when it was checked, beside what it took: as values, and in its events."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec

from smedje.domain.jobs import FineTuningJob, JobEvent
from smedje.domain.runs import RunResult
from smedje.errors import NotFound
from smedje.objects.run_folder import RunFolder
from smedje.services.context import Context
from smedje.services.prediction import prediction_key
from smedje.services.run_events import job_event
from smedje.store import runs as run_rows


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was predicted and what a job took; null where it is not known (yet).

    predicted: the estimate that was made when the job was checked. trained_tokens: of the job. seconds: of the worker
    with its start, all attempts of the job that ended with a result. memory_bytes: its peak. time_ratio, memory_ratio:
    actual over predicted. within: whether `seconds` lies in the error bar. summary: the same in words.
    """

    job_id: str
    predicted: dict[str, Any] | None
    trained_tokens: int | None
    seconds: float | None
    memory_bytes: int | None
    time_ratio: float | None
    memory_ratio: float | None
    within: bool | None
    summary: str


def compare(ctx: Context, job: FineTuningJob) -> Comparison:
    """Predicted against actual, as far as the job has come."""
    with ctx.database.transaction() as tx:
        runs = run_rows.list_runs(tx, job.id)
    results = [RunFolder(ctx.objects, run.id).read_result() for run in runs]
    return _comparison(ctx, job, [result for result in results if result is not None], job.trained_tokens)


def comparison_event(ctx: Context, job: FineTuningJob, result: RunResult) -> JobEvent | None:
    """The line for a job whose last run ended with `result`; None when nothing was predicted for it."""
    with ctx.database.transaction() as tx:
        runs = run_rows.list_runs(tx, job.id)
    # The last run's result is the one given; those before it ended without, or paused.
    earlier = [RunFolder(ctx.objects, run.id).read_result() for run in runs]
    results = [one for one in earlier if one is not None] or [result]
    found = _comparison(ctx, job, results, int(result.data.get("trained_tokens", 0)))
    if found.predicted is None or found.seconds is None:
        return None
    event = job_event(job.id, now=ctx.seconds(), message=found.summary)
    data = {name: value for name, value in asdict(found).items() if name not in ("job_id", "summary")}
    return replace(event, data=data)


def _comparison(ctx: Context, job: FineTuningJob, results: Sequence[RunResult], tokens: int | None) -> Comparison:
    try:
        predicted = msgspec.json.decode(ctx.objects.get(prediction_key(job.id)), type=dict[str, Any])
    except NotFound:
        predicted = None
    told = [result.data for result in results if result.data]
    taken = sum(float(one.get(name, 0)) for one in told for name in ("start_seconds", "seconds"))
    seconds = round(taken, 1) if told else None
    memory = max((int(one.get("peak_memory_bytes", 0)) for one in told), default=0) or None
    guess = predicted or {}
    low, high = guess.get("seconds_low"), guess.get("seconds_high")
    bar = None if seconds is None or low is None or high is None else low <= seconds <= high
    found = Comparison(
        job_id=job.id,
        predicted=predicted,
        trained_tokens=tokens,
        seconds=seconds,
        memory_bytes=memory,
        time_ratio=_ratio(seconds, guess.get("seconds")),
        memory_ratio=_ratio(memory, guess.get("memory_bytes")),
        within=bar,
        summary="",
    )
    return replace(found, summary=_in_words(found))


def _ratio(actual: float | None, guess: Any) -> float | None:
    return round(actual / guess, 3) if actual is not None and guess else None


def _in_words(found: Comparison) -> str:
    if found.predicted is None:
        return "Nothing was predicted for this job."
    if found.seconds is None:
        return "The job has not come to a result yet."
    guess = found.predicted
    text = f"Predicted {guess['seconds']:.0f} s"
    if found.within is not None:
        text += f" ({guess['seconds_low']:.0f} to {guess['seconds_high']:.0f})"
    text += f", took {found.seconds:.0f} s"
    if found.memory_bytes:
        text += f"; predicted {guess['memory_bytes'] / 1e9:.2f} GB of memory, used {found.memory_bytes / 1e9:.2f} GB"
    return f"{text}; predicted {guess['trained_tokens']:,} training tokens, trained {found.trained_tokens or 0:,}."
