"""Locations on the wire: where jobs can run, and what can be trained there."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from smedje.api.auth import CanReadHubs
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.services import locations as service

router = APIRouter(prefix="/api/locations", tags=["locations"])


class LocationModel(BaseModel):
    """A base model there. memory_bytes: what its default job needs. reason: why it cannot be trained there at all."""

    name: str
    installed: bool
    methods: list[str]
    memory_bytes: int | None
    reason: str | None


class LocationObject(BaseModel):
    """A compute target. alive: whether its server has spoken within five minutes."""

    name: str
    object: Literal["location"] = "location"
    alive: bool
    seen_at: int
    executor: str
    devices: list[str]
    gpu: str | None
    cores: int
    memory_bytes: int
    methods: list[str]
    models: list[LocationModel]


class LocationList(BaseModel):
    """Every location; never paged."""

    object: Literal["list"] = "list"
    data: list[LocationObject]


def to_object(found: service.Location) -> LocationObject:
    """The wire form of a location."""
    about: dict[str, Any] = dict(found.about)
    return LocationObject(name=found.name, alive=found.alive, seen_at=found.seen_at, **about)


@router.get("")
def list_locations(caller: CanReadHubs, ctx: Using, request: Request) -> LocationList:
    """Where jobs can run. A hub names one of these."""
    refuse_unknown_query(request, frozenset())
    return LocationList(data=[to_object(one) for one in service.list_locations(ctx)])
