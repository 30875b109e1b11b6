"""Members on the wire: who has which role in the caller's project and its hub."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from smedje.api.auth import CanReadMembers, CanWriteMembers
from smedje.api.bodies import Body
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.projects import Scope
from smedje.domain.roles import role_title, role_word
from smedje.services import members as service

DELETE_QUERY = frozenset({"scope"})

router = APIRouter(prefix="/api/members", tags=["members"])

Place = Literal["project", "hub"]


class MemberBody(Body):
    """A role and where it holds. role: a built-in one, or one of the hub's own. name: of somebody not known yet."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    scope: Place = "project"
    name: Annotated[str | None, Field(max_length=1024)] = None


class MemberObject(BaseModel):
    """A member's role in one place. kind: person, or service. origin: given, or mapped from a provider's groups."""

    id: str
    object: Literal["member"] = "member"
    kind: str
    email: str
    name: str
    role: str
    role_name: str
    scope: str
    origin: str
    disabled: bool
    since: int


class MemberList(BaseModel):
    """Everyone with a role here; never paged."""

    object: Literal["list"] = "list"
    data: list[MemberObject]


class MemberRemoved(BaseModel):
    """The answer to taking a role back."""

    id: str
    object: Literal["member"] = "member"
    deleted: bool = True


def to_object(found: service.MemberRole) -> MemberObject:
    """The wire form of a member's role."""
    return MemberObject(
        id=found.member.id,
        email=found.member.email,
        name=found.member.name,
        kind=found.member.kind.value,
        role=role_word(found.assignment.role),
        role_name=role_title(found.assignment.role),
        scope=found.scope.value,
        origin=found.assignment.origin.value,
        disabled=found.member.disabled_at is not None,
        since=found.assignment.created_at,
    )


@router.get("")
def list_members(caller: CanReadMembers, ctx: Using, request: Request) -> MemberList:
    """Who has a role in the project or its hub."""
    refuse_unknown_query(request, frozenset())
    return MemberList(data=[to_object(one) for one in service.list_members(ctx, caller)])


@router.put("/{member}")
def put_member(caller: CanWriteMembers, ctx: Using, member: str, body: MemberBody) -> MemberObject:
    """Give a member (address or id) a role, in the stead of the one held there before."""
    found = service.put_member(ctx, caller, member, role=body.role, scope=Scope(body.scope), name=body.name)
    return to_object(found)


@router.delete("/{member}")
def remove_member(
    caller: CanWriteMembers, ctx: Using, request: Request, member: str, scope: Place = "project"
) -> MemberRemoved:
    """Take a member's role back; keys that rest on it stop working at once."""
    refuse_unknown_query(request, DELETE_QUERY)
    return MemberRemoved(id=service.remove_member(ctx, caller, member, scope=Scope(scope)).id)
