"""Accounts on the wire: who can sign in to this server at all. Roles stand in `members.py`."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from smedje.api.auth import CanReadUsers, CanWriteUsers
from smedje.api.bodies import Body
from smedje.api.paging import Page, page, refuse_unknown_query
from smedje.api.state import Using
from smedje.services import users as service

LIST_QUERY = frozenset({"after", "limit"})

router = APIRouter(prefix="/api/users", tags=["users"])

Password = Annotated[str | None, Field(max_length=1024)]
Name = Annotated[str | None, Field(max_length=1024)]


class UserBody(Body):
    """A new account. Without a password the person signs in through the identity provider alone."""

    email: Annotated[str, Field(min_length=1, max_length=256)]
    name: Name = None
    password: Password = None


class UserUpdate(Body):
    """An account's change: what is left out stays. A new password, or disabling, ends every session."""

    name: Name = None
    password: Password = None
    disabled: bool | None = None


class UserObject(BaseModel):
    """An account. kind: person, or service. provider: the issuer by which the person has signed in."""

    id: str
    object: Literal["user"] = "user"
    kind: str
    email: str
    name: str
    password: bool
    provider: str | None
    disabled_at: int | None
    last_sign_in_at: int | None
    created_at: int


def to_object(user: service.User) -> UserObject:
    """The wire form of an account."""
    member = user.member
    return UserObject(
        id=member.id,
        kind=member.kind.value,
        email=member.email,
        name=member.name,
        password=user.has_password,
        provider=member.issuer,
        disabled_at=member.disabled_at,
        last_sign_in_at=member.last_sign_in_at,
        created_at=member.created_at,
    )


@router.get("")
def list_users(
    caller: CanReadUsers,
    ctx: Using,
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> Page[UserObject]:
    """Every account of the server, newest first. Only roles that hold for the whole server may."""
    refuse_unknown_query(request, LIST_QUERY)
    found = service.list_users(ctx, caller, after=after, limit=limit + 1)
    return page(found, limit, to_object, lambda user: user.member.id)


@router.post("")
def create_user(caller: CanWriteUsers, ctx: Using, body: UserBody) -> UserObject:
    """Make an account, without any role. Only roles that hold for the whole server may."""
    return to_object(service.create_user(ctx, caller, email=body.email, name=body.name, password=body.password))


@router.get("/{user}")
def get_user(caller: CanReadUsers, ctx: Using, user: str) -> UserObject:
    """One account, by address or id."""
    return to_object(service.get_user(ctx, caller, user))


@router.patch("/{user}")
def update_user(caller: CanWriteUsers, ctx: Using, user: str, body: UserUpdate) -> UserObject:
    """Rename, disable or enable an account, or set its password."""
    form = service.UserForm(name=body.name, password=body.password, disabled=body.disabled)
    return to_object(service.update_user(ctx, caller, user, form))
