"""Counted tokens and seconds per project, key and model. Rows are facts; prices come later and elsewhere."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class UsageRecord:
    """One metered event. Times are Unix seconds.

    kind: `training`, `training_failed` (metered, never charged), `inference` or `storage`. byte_seconds: of storage.
    """

    id: str
    project_id: str
    key_id: str | None
    kind: str
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    created_at: int = 0
    byte_seconds: int = 0
