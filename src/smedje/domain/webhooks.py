"""Webhooks: who is told about a project's jobs, and each telling. Knows names and times; sends nothing."""

from dataclasses import dataclass
from enum import StrEnum


class EventType(StrEnum):
    """What is told, in OpenAI's names."""

    JOB_SUCCEEDED = "fine_tuning.job.succeeded"
    JOB_FAILED = "fine_tuning.job.failed"
    JOB_CANCELLED = "fine_tuning.job.cancelled"


class DeliveryState(StrEnum):
    """`pending` deliveries are tried again; `failed` ones were tried for days."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """One address and what it is told.

    secret_version: counts rotations. old_secret_until: until when the secret before signs too. failing_since: when the
    first delivery failed after the last that went well. disabled_at: since when nothing is sent any more.
    """

    id: str
    project_id: str
    name: str
    url: str
    event_types: tuple[EventType, ...]
    secret_version: int
    created_at: int
    updated_at: int
    old_secret_until: int | None = None
    failing_since: int | None = None
    disabled_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One event on its way to one webhook. id: the event's.

    object_id: what happened to. next_at: when to try (again). status: the last answer's. problem: a code, where there
    was no answer.
    """

    id: str
    project_id: str
    webhook_id: str
    type: EventType
    object_id: str
    created_at: int
    state: DeliveryState
    attempts: int
    next_at: int
    status: int | None = None
    problem: str | None = None
    ended_at: int | None = None
