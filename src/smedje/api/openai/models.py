"""Models on the wire: installed base models and the project's fine-tuned models, in OpenAI's shapes."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from smedje.api.auth import CanDeleteModels, CanReadModels
from smedje.api.state import Using
from smedje.domain.projects import Project
from smedje.services import catalog as service
from smedje.services import removal
from smedje.services.catalog import ModelEntry

router = APIRouter(prefix="/v1/models", tags=["models"])


class ModelObject(BaseModel):
    """OpenAI's model object."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """OpenAI's list of models; it is never paged."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelDeleted(BaseModel):
    """OpenAI's answer to a deletion."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


def to_object(entry: ModelEntry, project: Project) -> ModelObject:
    """The wire form of a model; its owner is the publisher or, for a tuned one, the project."""
    owner = project.name if entry.name.startswith("ft:") else entry.publisher or "local"
    return ModelObject(id=entry.name, created=entry.created_at, owned_by=owner)


@router.get("")
def list_models(caller: CanReadModels, ctx: Using) -> ModelList:
    """Every model that a request may name: installed base models first, then fine-tuned ones, newest first."""
    return ModelList(data=[to_object(entry, caller.project) for entry in service.list_models(ctx, caller.project)])


@router.get("/{model}")
def get_model(caller: CanReadModels, ctx: Using, model: str) -> ModelObject:
    """One model."""
    return to_object(service.get_model(ctx, caller.project, model), caller.project)


@router.delete("/{model}")
def delete_model(caller: CanDeleteModels, ctx: Using, model: str) -> ModelDeleted:
    """Delete a fine-tuned model or a checkpoint with its bytes. Refused with 409 while something uses it."""
    removal.delete_model(ctx, caller.project, model)
    return ModelDeleted(id=model)
