"""Runs: one attempt to execute a job. The only language between the planes: what goes into a run folder and out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class RunState(StrEnum):
    """`lost` means that the worker went away without a result."""

    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One attempt.

    attempt: 1 for the first run of its job. handle: what the executor needs to find the worker again.
    events_cursor: name of the last event object taken in; kept in the same transaction as the events themselves.
    """

    id: str
    job_id: str
    attempt: int
    state: RunState
    executor: str
    handle: Mapping[str, Any]
    started_at: int
    events_cursor: str = ""
    ended_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """Something a worker has to say.

    kind: started | resolved | step | validation | checkpoint | message. data is JSON.
    at: Unix seconds with fraction.
    """

    kind: str
    at: float
    message: str = ""
    level: str = "info"
    data: Mapping[str, Any] = field(default_factory=dict)


class Control(StrEnum):
    """What the control plane may ask of a running worker."""

    PAUSE = "pause"
    CANCEL = "cancel"


class Outcome(StrEnum):
    """How a worker says that it ended."""

    SUCCEEDED = "succeeded"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A worker's last word, written once and last.

    step: optimizer steps done. data: numbers of the whole run (trained_tokens, seconds, peak memory).
    """

    outcome: Outcome
    step: int = 0
    error_code: str | None = None
    error_message: str | None = None
    error_param: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WorkerOrder:
    """What a waiting process is told: be the worker of this run, and append your output to `log`."""

    run: str
    log: str


@dataclass(frozen=True, kw_only=True)
class WorkerAnswer:
    """What a waiting process says: that it is ready (no run), or which process is a run's worker."""

    run: str = ""
    pid: int = 0


# The name under which the system lists a worker that was made from a waiting process (at most 15 bytes).
WORKER_NAME = "smedje-worker"
