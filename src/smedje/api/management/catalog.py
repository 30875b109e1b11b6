"""The catalog of base models on the wire: what can be tuned, and what of it is on this machine."""

from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from smedje.api.auth import CanReadModels
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.catalog import BaseModel as CatalogModel
from smedje.services import catalog as service

LIST_QUERY = frozenset({"search", "family", "method"})

router = APIRouter(prefix="/api/catalog", tags=["catalog"])


class CatalogObject(BaseModel):
    """A catalog entry. defaults: what "auto" stands for. limits: the widest values that a job may ask for."""

    id: str
    object: Literal["catalog.model"] = "catalog.model"
    display_name: str
    family: str
    publisher: str
    description: str
    parameters: int
    context_tokens: int
    licence: str
    licence_url: str
    gated: bool
    methods: list[str]
    defaults: dict[str, Any]
    limits: dict[str, Any]
    disk_bytes: int
    memory_training_bytes: int
    memory_serving_bytes: int
    installed: bool


class CatalogList(BaseModel):
    """Every entry that matches; never paged."""

    object: Literal["list"] = "list"
    data: list[CatalogObject]


def to_object(model: CatalogModel, *, installed: bool) -> CatalogObject:
    """The wire form of a catalog entry."""
    return CatalogObject(
        id=model.name,
        display_name=model.display_name,
        family=model.family,
        publisher=model.publisher,
        description=model.description,
        parameters=model.parameters,
        context_tokens=model.context_tokens,
        licence=model.licence,
        licence_url=model.licence_url,
        gated=model.gated,
        methods=list(model.methods),
        defaults=asdict(model.defaults),
        limits=asdict(model.limits),
        disk_bytes=model.disk_bytes,
        memory_training_bytes=model.memory_training_bytes,
        memory_serving_bytes=model.memory_serving_bytes,
        installed=installed,
    )


@router.get("")
def list_catalog(
    caller: CanReadModels,
    ctx: Using,
    request: Request,
    search: str = "",
    family: str | None = None,
    method: str | None = None,
) -> CatalogList:
    """Base models that hold every word of `search`."""
    refuse_unknown_query(request, LIST_QUERY)
    installed = service.installed_names(ctx)
    found = service.search(search, family=family, method=method)
    return CatalogList(data=[to_object(model, installed=model.name in installed) for model in found])
