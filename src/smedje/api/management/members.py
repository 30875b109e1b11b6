"""Members on the wire: who has which role in the caller's project and its hub."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from smedje.api.auth import CanReadMembers, CanWriteMembers
from smedje.api.bodies import Body
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.projects import ROLE_NAMES, Role, Scope
from smedje.services import members as service

DELETE_QUERY = frozenset({"scope"})

router = APIRouter(prefix="/api/members", tags=["members"])

Place = Literal["project", "hub"]


class MemberBody(Body):
    """A role and where it holds. name: of a person who is not known yet."""

    role: Role
    scope: Place = "project"
    name: Annotated[str | None, Field(max_length=1024)] = None


class MemberObject(BaseModel):
    """A person's role in one place."""

    id: str
    object: Literal["member"] = "member"
    email: str
    name: str
    role: str
    role_name: str
    scope: str
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
    """The wire form of a person's role."""
    return MemberObject(
        id=found.member.id,
        email=found.member.email,
        name=found.member.name,
        role=found.assignment.role.value,
        role_name=ROLE_NAMES[found.assignment.role],
        scope=found.scope.value,
        since=found.assignment.created_at,
    )


@router.get("")
def list_members(caller: CanReadMembers, ctx: Using, request: Request) -> MemberList:
    """Who has a role in the project or its hub."""
    refuse_unknown_query(request, frozenset())
    return MemberList(data=[to_object(one) for one in service.list_members(ctx, caller)])


@router.put("/{member}")
def put_member(caller: CanWriteMembers, ctx: Using, member: str, body: MemberBody) -> MemberObject:
    """Give a person (address or id) a role, in the stead of the one held there before."""
    found = service.put_member(ctx, caller, member, role=body.role, scope=Scope(body.scope), name=body.name)
    return to_object(found)


@router.delete("/{member}")
def remove_member(
    caller: CanWriteMembers, ctx: Using, request: Request, member: str, scope: Place = "project"
) -> MemberRemoved:
    """Take a person's role back; keys that rest on it stop working at once."""
    refuse_unknown_query(request, DELETE_QUERY)
    return MemberRemoved(id=service.remove_member(ctx, caller, member, scope=Scope(scope)).id)
