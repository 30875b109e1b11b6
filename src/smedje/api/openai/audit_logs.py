"""OpenAI's audit-log route: the hash-chained log under OpenAI's names of events, with its filters."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from smedje.api.auth import CanReadAudit
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.audit import AuditFilter
from smedje.domain.ids import SESSION
from smedje.domain.projects import MemberKind
from smedje.errors import InvalidRequest
from smedje.services import audit_search as service

router = APIRouter(tags=["audit"])

# Our action -> OpenAI's event. Actions that OpenAI has no word for keep ours.
EVENTS = {
    "key.created": "api_key.created",
    "key.rotated": "api_key.updated",
    "key.revoked": "api_key.deleted",
    "member.role_given": "role.assignment.created",
    "member.role_taken": "role.assignment.deleted",
    "quota.set": "rate_limit.updated",
    "sign_in.succeeded": "login.succeeded",
    "sign_in.failed": "login.failed",
    "signed_out": "logout.succeeded",
    "user.created": "user.added",
    "user.password_set": "user.updated",
}
ACTIONS = {event: [ours for ours, theirs in EVENTS.items() if theirs == event] for event in set(EVENTS.values())}

LISTS = ("project_ids", "event_types", "actor_ids", "actor_emails", "resource_ids")
RANGE = {"effective_at[gt]": 1, "effective_at[gte]": 0, "effective_at[lt]": -1, "effective_at[lte]": 0}
QUERY = frozenset({*LISTS, *(f"{name}[]" for name in LISTS), *RANGE, "after", "before", "limit"})
MOST_VALUES = 100


class AuditLogPage(BaseModel):
    """A page of OpenAI's audit-log objects, newest first: id, type, effective_at, actor, project and, under the type's
    own name, the details."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.get("/v1/organization/audit_logs")
def list_audit_logs(
    caller: CanReadAudit,
    ctx: Using,
    request: Request,
    after: str | None = None,
    before: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> AuditLogPage:
    """Who did what, in every project in which the caller may read the log. Filters: effective_at[gt|gte|lt|lte],
    project_ids[], event_types[], actor_ids[], actor_emails[], resource_ids[]."""
    refuse_unknown_query(request, QUERY)
    if after is not None and before is not None:
        raise InvalidRequest("Give after or before, not both.", code="invalid_value", param="before")
    given = {name: _values(request, name) for name in LISTS}
    since, until = _range(request)
    events = given["event_types"]
    wanted = AuditFilter(
        wanted_projects=given["project_ids"],
        actions=None if events is None else [ours for one in events for ours in ACTIONS.get(one, [one])],
        actors=given["actor_ids"],
        object_ids=given["resource_ids"],
        since=since,
        until=until,
    )
    place = service.Place(cursor=after or before, newer=before is not None, limit=limit + 1)
    found = service.search(ctx, caller, wanted, place, emails=given["actor_emails"])
    # The one beyond the page is the farthest from the cursor: the newest when going towards newer ones.
    kept = found[-limit:] if before is not None else found[:limit]
    return AuditLogPage(
        data=[_object(one) for one in kept],
        first_id=kept[0].entry.id if kept else None,
        last_id=kept[-1].entry.id if kept else None,
        has_more=len(found) > limit,
    )


def _values(request: Request, name: str) -> list[str] | None:
    found = [*request.query_params.getlist(name), *request.query_params.getlist(f"{name}[]")]
    if len(found) > MOST_VALUES:
        raise InvalidRequest(f"{name} takes at most {MOST_VALUES} values.", code="invalid_value", param=name)
    return found or None


def _range(request: Request) -> tuple[int | None, int | None]:
    """The first and last second that are wanted."""
    since: list[int] = []
    until: list[int] = []
    for name, shift in RANGE.items():
        text = request.query_params.get(name)
        if text is None:
            continue
        if not (text.isascii() and text.isdigit() and len(text) <= 12):
            raise InvalidRequest(f"{name} takes Unix seconds, found {text[:40]!r}.", code="invalid_value", param=name)
        (since if "[g" in name else until).append(int(text) + shift)
    return max(since, default=None), min(until, default=None)


def _object(found: service.NamedEntry) -> dict[str, Any]:
    entry = found.entry
    event, details = EVENTS.get(entry.action, entry.action), json.loads(entry.details)
    answer: dict[str, Any] = {
        "object": "organization.audit_log",
        "id": entry.id,
        "type": event,
        "effective_at": entry.at,
        "actor": _actor(found),
        event: _payload(event, found, details),
    }
    if entry.project_id is not None:
        answer["project"] = {"id": entry.project_id, "name": found.project.name if found.project else ""}
    return answer


def _actor(found: service.NamedEntry) -> dict[str, Any] | None:
    """Who acted. None: the server itself."""
    entry, member = found.entry, found.member
    user = {"id": member.id, "email": member.email} if member else None
    if entry.key_id is None or entry.key_id.startswith(SESSION):
        if entry.key_id is None and entry.address is None:
            return None
        return {"type": "session", "session": {"user": user, "ip_address": entry.address}}
    key: dict[str, Any] = {"id": entry.key_id}
    if member is not None and member.kind is MemberKind.PERSON:
        key |= {"type": "user", "user": user}
    else:
        key |= {"type": "service_account", "service_account": {"id": member.id if member else entry.key_id}}
    return {"type": "api_key", "api_key": key}


def _payload(event: str, found: service.NamedEntry, details: Mapping[str, Any]) -> dict[str, Any]:
    """The event's own details, under OpenAI's names where it has them."""
    entry = found.entry
    if event.startswith("role.assignment"):
        return {
            "id": details.get("role", ""),
            "principal_id": entry.object_id,
            "principal_type": "user",
            "resource_id": entry.project_id if details.get("scope") == "project" else entry.hub_id,
            "resource_type": details.get("scope", ""),
        }
    if event == "login.failed":
        return {"error_code": "sign_in_failed", "error_message": f"by {details.get('how', '')}"}
    if event in ("role.created", "role.updated"):
        return {"id": entry.object_id, "permissions": str(details.get("permissions", "")).split()}
    return {"id": entry.object_id, **({"data": dict(details)} if details else {})}
