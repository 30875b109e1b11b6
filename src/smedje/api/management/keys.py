"""API keys on the wire: made, rotated and revoked; a secret is in exactly one answer, that of its making."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from smedje.api.auth import CanReadKeys, CanWriteKeys
from smedje.api.bodies import Body
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.projects import ApiKey, Scope
from smedje.domain.roles import role_title, role_word
from smedje.services import keys as service

router = APIRouter(prefix="/api/keys", tags=["keys"])


class KeyBody(Body):
    """A new key. role: a built-in one, or one of the hub's own. member: address or id of whose. expires_in: seconds."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    role: Annotated[str | None, Field(min_length=1, max_length=64)] = None
    scope: Scope = Scope.PROJECT
    member: Annotated[str | None, Field(max_length=256)] = None
    permissions: Annotated[list[str] | None, Field(max_length=100)] = None
    expires_in: int | None = None


class RotateBody(Body):
    """grace_seconds: for how long the old secret goes on working."""

    grace_seconds: int = service.GRACE_SECONDS


class KeyObject(BaseModel):
    """A key without its secret. key: its first and last characters."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    key: str
    role: str
    role_name: str
    scope: str
    member_id: str | None
    permissions: list[str] | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None


class NewKeyObject(KeyObject):
    """A key that was just made, with its secret: nothing can show it again."""

    secret: str


class KeyList(BaseModel):
    """The project's keys; never paged."""

    object: Literal["list"] = "list"
    data: list[KeyObject]


class KeyRevoked(BaseModel):
    """The answer to a revocation."""

    id: str
    object: Literal["api_key"] = "api_key"
    deleted: bool = True


def to_object(key: ApiKey) -> KeyObject:
    """The wire form of a key."""
    return KeyObject(
        id=key.id,
        name=key.name,
        key=f"{key.prefix}…{key.last_four}",
        role=role_word(key.role),
        role_name=role_title(key.role),
        scope=key.scope.value,
        member_id=key.member_id,
        permissions=None if key.permissions is None else sorted(key.permissions),
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )


def to_new_object(key: ApiKey, secret: str) -> NewKeyObject:
    """The wire form of a key with its secret."""
    return NewKeyObject(**to_object(key).model_dump(), secret=secret)


@router.get("")
def list_keys(caller: CanReadKeys, ctx: Using, request: Request) -> KeyList:
    """The project's keys, newest first; revoked and expired ones too."""
    refuse_unknown_query(request, frozenset())
    return KeyList(data=[to_object(key) for key in service.list_keys(ctx, caller)])


@router.post("")
def create_key(caller: CanWriteKeys, ctx: Using, body: KeyBody) -> NewKeyObject:
    """Make a key. No key may do more than whoever makes it."""
    form = service.KeyForm(
        name=body.name,
        role=body.role,
        scope=body.scope,
        member=body.member,
        permissions=body.permissions,
        lifetime=body.expires_in,
    )
    return to_new_object(*service.create_key(ctx, caller, form))


@router.post("/{key_id}/rotate")
def rotate_key(caller: CanWriteKeys, ctx: Using, key_id: str, body: RotateBody) -> NewKeyObject:
    """A new secret; the old one works for the grace period."""
    return to_new_object(*service.rotate_key(ctx, caller, key_id, grace_seconds=body.grace_seconds))


@router.delete("/{key_id}")
def revoke_key(caller: CanWriteKeys, ctx: Using, key_id: str) -> KeyRevoked:
    """End a key at once."""
    service.revoke_key(ctx, caller, key_id)
    return KeyRevoked(id=key_id)
