"""The audit log on the wire: who did what to which object, from where; and a check of its chain."""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from smedje.api.auth import CanReadAudit
from smedje.api.paging import Page, page, refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.audit import AuditEntry
from smedje.services import audit as service

LIST_QUERY = frozenset({"after", "limit"})

router = APIRouter(prefix="/api/audit", tags=["audit"])


class AuditObject(BaseModel):
    """One change. key_id is null for what the server did by itself."""

    id: str
    object: Literal["audit.entry"] = "audit.entry"
    at: int
    action: str
    object_id: str
    project_id: str | None
    key_id: str | None
    member_id: str | None
    address: str | None
    request_id: str | None
    details: dict[str, Any]
    hash: str


class AuditVerdict(BaseModel):
    """What a check of the whole chain found. head: the newest hash, to be kept elsewhere."""

    object: Literal["audit.verdict"] = "audit.verdict"
    sound: bool
    entries: int
    head: str
    broken_at: str | None


def to_object(entry: AuditEntry) -> AuditObject:
    """The wire form of an entry."""
    return AuditObject(
        id=entry.id,
        at=entry.at,
        action=entry.action,
        object_id=entry.object_id,
        project_id=entry.project_id,
        key_id=entry.key_id,
        member_id=entry.member_id,
        address=entry.address,
        request_id=entry.request_id,
        details=json.loads(entry.details),
        hash=entry.hash,
    )


@router.get("")
def list_audit(
    caller: CanReadAudit,
    ctx: Using,
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> Page[AuditObject]:
    """The project's entries, newest first; for those who may, with the hub's and the server's own."""
    refuse_unknown_query(request, LIST_QUERY)
    found = service.list_entries(ctx, caller, after=after, limit=limit + 1)
    return page(found, limit, to_object, lambda entry: entry.id)


@router.get("/verify")
def verify_audit(caller: CanReadAudit, ctx: Using, request: Request) -> AuditVerdict:
    """Follow the chain of all entries from the first on."""
    refuse_unknown_query(request, frozenset())
    found = service.verify(ctx)
    return AuditVerdict(
        sound=found.broken_at is None, entries=found.entries, head=found.head, broken_at=found.broken_at
    )
