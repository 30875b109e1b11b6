"""Roles on the wire: the built-in ones, and those that the caller's hub made for itself."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from smedje.api.auth import CanReadMembers, CanWriteMembers
from smedje.api.bodies import Body
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.roles import AnyRole, CustomRole, permissions_of, role_title, role_word
from smedje.services import roles as service

router = APIRouter(prefix="/api/roles", tags=["roles"])

Permissions = Annotated[list[str], Field(max_length=100)]
Text = Annotated[str, Field(max_length=4096)]


class RoleBody(Body):
    """A new role of the hub: a name for a set of permissions, none of which its maker lacks."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    permissions: Permissions
    description: Text = ""


class RoleUpdate(Body):
    """A role's change, for everyone who has it: what is left out stays."""

    permissions: Permissions | None = None
    description: Text | None = None


class RoleObject(BaseModel):
    """A role. id: null for a built-in one. name: the word by which it is given."""

    id: str | None
    object: Literal["role"] = "role"
    name: str
    title: str
    description: str
    permissions: list[str]
    built_in: bool
    created_at: int | None


class RoleList(BaseModel):
    """The roles that can be given in the hub; never paged."""

    object: Literal["list"] = "list"
    data: list[RoleObject]


class RoleDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["role"] = "role"
    deleted: bool = True


def to_object(role: AnyRole) -> RoleObject:
    """The wire form of a role."""
    own = role if isinstance(role, CustomRole) else None
    return RoleObject(
        id=own.id if own else None,
        name=role_word(role),
        title=role_title(role),
        description=own.description if own else "",
        permissions=sorted(permissions_of(role)),
        built_in=own is None,
        created_at=own.created_at if own else None,
    )


@router.get("")
def list_roles(caller: CanReadMembers, ctx: Using, request: Request) -> RoleList:
    """The built-in roles, and the hub's own."""
    refuse_unknown_query(request, frozenset())
    return RoleList(data=[to_object(role) for role in service.list_roles(ctx, caller)])


@router.post("")
def create_role(caller: CanWriteMembers, ctx: Using, body: RoleBody) -> RoleObject:
    """Make a role of the hub's own. Needs members.write in the hub."""
    role = service.create_role(ctx, caller, name=body.name, description=body.description, permissions=body.permissions)
    return to_object(role)


@router.patch("/{role}")
def update_role(caller: CanWriteMembers, ctx: Using, role: str, body: RoleUpdate) -> RoleObject:
    """Change what one of the hub's own roles allows, for everyone who has it."""
    return to_object(service.update_role(ctx, caller, role, description=body.description, permissions=body.permissions))


@router.delete("/{role}")
def delete_role(caller: CanWriteMembers, ctx: Using, role: str) -> RoleDeleted:
    """Take one of the hub's own roles away. Refused while somebody has it."""
    return RoleDeleted(id=service.delete_role(ctx, caller, role).id)
