"""Hubs on the wire: make, list, look at, change, archive and delete them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from smedje.api.auth import CanReadHubs, CanWriteHubs
from smedje.api.bodies import Body
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.projects import Hub
from smedje.services import hubs as service

router = APIRouter(prefix="/api/hubs", tags=["hubs"])

Name = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str | None, Field(max_length=4096)]


class HubWords(Body):
    """What is said of a hub, and may be changed."""

    display_name: Text = None
    description: Text = None
    subscription: Text = None
    resource_group: Text = None
    ai_services: Text = None
    search: Text = None
    tags: dict[str, str] | None = None


class HubBody(HubWords):
    """A new hub. location: where its jobs run; this server's own when left out. ai_services, search: names of
    connections; leave them out to skip."""

    name: Name
    location: Name | None = None


class HubUpdate(HubWords):
    """A hub's change: what is left out stays. archived: whether it takes no new projects."""

    archived: bool | None = None


class HubObject(BaseModel):
    """A hub."""

    id: str
    object: Literal["hub"] = "hub"
    name: str
    display_name: str
    description: str
    subscription: str
    resource_group: str
    location: str
    ai_services: str | None
    search: str | None
    tags: dict[str, str]
    created_at: int
    archived_at: int | None


class HubList(BaseModel):
    """Every hub that the caller has a role in; never paged."""

    object: Literal["list"] = "list"
    data: list[HubObject]


class HubDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["hub"] = "hub"
    deleted: bool = True


def to_object(hub: Hub) -> HubObject:
    """The wire form of a hub."""
    return HubObject.model_validate({name: value for name, value in vars(hub).items() if name != "deleted_at"})


def to_form(body: HubWords) -> service.HubForm:
    """What the body says about a hub."""
    return service.HubForm(
        display_name=body.display_name,
        description=body.description,
        subscription=body.subscription,
        resource_group=body.resource_group,
        ai_services=body.ai_services,
        search=body.search,
        tags=body.tags,
    )


@router.post("")
def create_hub(caller: CanWriteHubs, ctx: Using, body: HubBody) -> HubObject:
    """Make a hub. Only roles that hold for the whole server may."""
    return to_object(service.create_hub(ctx, caller, name=body.name, location=body.location, form=to_form(body)))


@router.get("")
def list_hubs(caller: CanReadHubs, ctx: Using, request: Request) -> HubList:
    """The hubs in which the caller has a role."""
    refuse_unknown_query(request, frozenset())
    return HubList(data=[to_object(hub) for hub in service.list_hubs(ctx, caller)])


@router.get("/{hub}")
def get_hub(caller: CanReadHubs, ctx: Using, hub: str) -> HubObject:
    """One hub, by name or id."""
    return to_object(service.get_hub(ctx, caller, hub))


@router.patch("/{hub}")
def update_hub(caller: CanWriteHubs, ctx: Using, hub: str, body: HubUpdate) -> HubObject:
    """Change a hub's words or tags, or archive it."""
    return to_object(service.update_hub(ctx, caller, hub, to_form(body), archived=body.archived))


@router.delete("/{hub}")
def delete_hub(caller: CanWriteHubs, ctx: Using, hub: str) -> HubDeleted:
    """Delete an empty hub."""
    return HubDeleted(id=service.delete_hub(ctx, caller, hub).id)
