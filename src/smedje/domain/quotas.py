"""Limits of a project or a deployment, and what is counted against them. Knows names and units; counts nothing."""

from dataclasses import dataclass
from enum import StrEnum


class Limit(StrEnum):
    """What can be limited. A limit without a value does not hold."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    ACTIVE_JOBS = "active_jobs"
    STORED_BYTES = "stored_bytes"
    FINE_TUNED_MODELS = "fine_tuned_models"
    DEPLOYMENTS = "deployments"
    TRAINING_TOKENS_PER_MONTH = "training_tokens_per_month"
    MONEY_PER_MONTH = "money_per_month"


# Kept in the memory of one process; the others are rows. These two can also be set for one deployment.
RATES = frozenset({Limit.REQUESTS_PER_MINUTE, Limit.TOKENS_PER_MINUTE})
MONTHLY = frozenset({Limit.TRAINING_TOKENS_PER_MONTH, Limit.MONEY_PER_MONTH})


@dataclass(frozen=True, kw_only=True)
class Quota:
    """A limit's value. deployment: empty for the whole project. Money is in millionths of the prices' currency.

    warn_percent: from which share of the value on its use is warned of, 100 for never. warned_at: when that was last
    written down.
    """

    project_id: str
    deployment: str
    name: Limit
    value: int
    updated_at: int
    warn_percent: int = 80
    warned_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """What one job (while it is unfinished) or one request (until expires_at) may still use up.

    tokens: training tokens. money: millionths of the prices' currency.
    """

    id: str
    project_id: str
    job_id: str | None
    tokens: int
    money: int
    expires_at: int | None
