"""Follow a fine-tuning job: every event once, drawn as a progress bar, as plain lines or as JSON lines.

Knows the events and their numbers; knows nothing of how a job runs.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from smedje.cli.output import console, duration, print_json_line, say, shows_progress
from smedje.errors import Unavailable

if TYPE_CHECKING:
    from smedje.cli.client import Client

# In these nothing more happens by itself.
SETTLED = frozenset({"succeeded", "failed", "cancelled", "paused"})
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0


def watch(client: "Client", job_id: str, *, as_json: bool) -> dict[str, Any]:
    """Show a job until it has ended or is paused; the job as it is then."""
    items = follow(client, job_id)
    if as_json:
        return _as_json(items)
    return as_bar(items) if shows_progress() else as_lines(items)


def follow(client: "Client", job_id: str) -> Iterator[dict[str, Any]]:
    """Every event, oldest first, and the job whenever its status changed; the settled job comes last.

    A server that restarts is waited for up to a minute. Raises Unavailable after that, NotFound for no such job.
    """
    seen: set[str] = set()
    status = ""
    answered = time.monotonic()
    while True:
        try:
            job = client.get(f"/v1/fine_tuning/jobs/{job_id}")
            events = _new_events(client, job_id, seen)
        except Unavailable:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise
            time.sleep(POLL_SECONDS)
            continue
        answered = time.monotonic()
        seen.update(str(event["id"]) for event in events)
        yield from events
        if job["status"] != status:
            status = str(job["status"])
            yield job
        if status in SETTLED:
            return
        time.sleep(POLL_SECONDS)


def is_job(item: Mapping[str, Any]) -> bool:
    """Whether an item of `follow` is the job; otherwise it is an event."""
    return item.get("object") == "fine_tuning.job"


def metrics_of(item: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The numbers of a metrics event; None for anything else."""
    data = item.get("data")
    return data if item.get("type") == "metrics" and isinstance(data, dict) else None


def metrics_line(data: Mapping[str, Any]) -> str:
    """One step's numbers in words; what an event lacks is left out."""
    total = data.get("total_steps")
    parts = [f"step {data.get('step', '?')}" + (f"/{total}" if total else "")]
    for name, label, form in (
        ("train_loss", "loss", ".4f"),
        ("train_mean_token_accuracy", "accuracy", ".3f"),
        ("train_reward_accuracy", "pairs right", ".3f"),
        ("valid_loss", "valid loss", ".4f"),
        ("full_valid_loss", "held-out loss", ".4f"),
        ("full_valid_mean_token_accuracy", "held-out accuracy", ".3f"),
        ("full_valid_reward_accuracy", "held-out pairs right", ".3f"),
        ("learning_rate", "lr", ".2e"),
        ("tokens_per_second", "tokens/s", ",.0f"),
    ):
        if isinstance(data.get(name), int | float):
            parts.append(f"{label} {data[name]:{form}}")
    left = duration(data.get("eta_seconds"))
    return "  ".join(parts + ([f"{left} left"] if left else []))


def _new_events(client: "Client", job_id: str, seen: set[str]) -> list[dict[str, Any]]:
    fresh: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        page = client.get(f"/v1/fine_tuning/jobs/{job_id}/events", {"limit": 100, "after": after})
        data = page["data"]
        unknown = [event for event in data if event["id"] not in seen]
        fresh += unknown
        if len(unknown) < len(data) or not page.get("has_more") or not data:
            return fresh[::-1]
        after = data[-1]["id"]


def _as_json(items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for item in items:
        print_json_line(item)
        last = item
    return last


def as_lines(items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Print every event as one line; the last item."""
    last: dict[str, Any] = {}
    for item in items:
        last = item
        if not is_job(item):
            data = metrics_of(item)
            say(f"{_clock(item)} {item['message'] if data is None else metrics_line(data)}")
    return last


def as_bar(items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Draw the job's progress on standard error, and print its messages; the last item."""
    from rich.progress import BarColumn, Progress, TextColumn

    last: dict[str, Any] = {}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[line]}"),
        console=console(stderr=True),
        redirect_stdout=sys.stdout.isatty(),
    )
    with bar:
        row = bar.add_task("waiting", total=None, line="")
        for item in items:
            last = item
            data = metrics_of(item)
            if is_job(item):
                bar.update(row, description=str(item["status"]))
            elif data is None:
                say(f"{_clock(item)} {item['message']}")
            else:
                bar.update(row, completed=data.get("step", 0), total=data.get("total_steps"), line=metrics_line(data))
    return last


def _clock(event: Mapping[str, Any]) -> str:
    return time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
