"""What is kept how long, and what was erased. Knows names and times; removes nothing."""

from dataclasses import dataclass
from enum import StrEnum


class Kept(StrEnum):
    """What a retention rule is about. Events: jobs' stories, workers' logs, deliveries to webhooks."""

    FILES = "files"
    CHECKPOINTS = "checkpoints"
    EVENTS = "events"


@dataclass(frozen=True, kw_only=True)
class RetentionRule:
    """For how many days a project keeps something; 0 for ever."""

    project_id: str
    kind: Kept
    days: int
    updated_at: int


class ErasureState(StrEnum):
    """`removing`: the rows are gone, bytes are going."""

    REMOVING = "removing"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """One erasure with its certificate (JSON), whose SHA-256 stands in the audit log.

    leftovers: prefixes in object storage that are still to go.
    """

    id: str
    project_id: str
    created_at: int
    state: ErasureState
    leftovers: tuple[str, ...]
    certificate: str
    sha256: str
    ended_at: int | None = None
