"""A deployment's two keys on the wire: look at them, and make one anew."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from smedje.api.auth import CanReadKeys, CanWriteKeys
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.deployments import KeySlot
from smedje.domain.projects import ApiKey
from smedje.services import deployment_keys as service

router = APIRouter(prefix="/api/deployments/{name}/keys", tags=["deployments"])


class DeploymentKeyObject(BaseModel):
    """One of a deployment's keys without its secret. id and the rest are null for a key that was never made."""

    object: Literal["deployment.key"] = "deployment.key"
    slot: KeySlot
    id: str | None
    key: str | None
    created_at: int | None
    last_used_at: int | None


class NewDeploymentKeyObject(DeploymentKeyObject):
    """A key that was just made, with its secret: nothing can show it again."""

    secret: str


class DeploymentKeyList(BaseModel):
    """Both keys; never paged."""

    object: Literal["list"] = "list"
    data: list[DeploymentKeyObject]


def to_object(slot: KeySlot, key: ApiKey | None) -> DeploymentKeyObject:
    """The wire form of a slot."""
    return DeploymentKeyObject(
        slot=slot,
        id=key.id if key else None,
        key=f"{key.prefix}…{key.last_four}" if key else None,
        created_at=key.created_at if key else None,
        last_used_at=key.last_used_at if key else None,
    )


@router.get("")
def list_keys(caller: CanReadKeys, ctx: Using, request: Request, name: str) -> DeploymentKeyList:
    """The deployment's two keys, without their secrets."""
    refuse_unknown_query(request, frozenset())
    found = service.list_deployment_keys(ctx, caller, name)
    return DeploymentKeyList(data=[to_object(slot, key) for slot, key in found.items()])


@router.post("/{slot}")
def make_key(caller: CanWriteKeys, ctx: Using, name: str, slot: KeySlot) -> NewDeploymentKeyObject:
    """A new key in this slot; the one before it ends at once. Move clients to the other slot first."""
    key, secret = service.make_deployment_key(ctx, caller, name, slot)
    return NewDeploymentKeyObject(**to_object(slot, key).model_dump(), secret=secret)
