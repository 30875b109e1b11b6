"""The audit log's entries and their chain: who did what to which object, from where. Never what anyone wrote.

Each entry's hash covers its own fields and the hash before it, so that a changed, missing or inserted entry shows.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass

FIRST = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who acts and from where. Everything empty: the server itself."""

    key_id: str | None = None
    member_id: str | None = None
    address: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One change. action: noun and verb (`deployment.created`). object_id: an id of ours, never a name.

    details: a JSON object of small facts that no user words can get into. previous: the hash of the entry before.
    """

    id: str
    at: int
    action: str
    object_id: str
    hub_id: str | None
    project_id: str | None
    key_id: str | None
    member_id: str | None
    address: str | None
    request_id: str | None
    details: str
    previous: str

    @property
    def hash(self) -> str:
        """SHA-256 over all fields in a fixed order, in hex."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class AuditFilter:
    """Which entries are wanted; None does not narrow. since, until: inclusive, in Unix seconds.

    project_ids, hub_ids: the places whose entries the asker may see, None for all. actors: ids of keys, sessions or
    members.
    """

    project_ids: Collection[str] | None = None
    hub_ids: Collection[str] | None = None
    wanted_projects: Collection[str] | None = None
    actions: Collection[str] | None = None
    actors: Collection[str] | None = None
    object_ids: Collection[str] | None = None
    since: int | None = None
    until: int | None = None
