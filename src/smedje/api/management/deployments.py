"""Deployments on the wire: name a model, list, look at and delete the names."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from smedje.api.auth import CanReadDeployments, CanWriteDeployments
from smedje.api.bodies import Body
from smedje.api.paging import Page, page, refuse_unknown_query
from smedje.api.state import Chatting, Using
from smedje.domain.deployments import Deployment
from smedje.errors import NotFound
from smedje.services import deployments as service

LIST_QUERY = frozenset({"model", "after", "limit"})

router = APIRouter(prefix="/api/deployments", tags=["deployments"])


class DeploymentBody(Body):
    """What to deploy, and under which name."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    model: Annotated[str, Field(min_length=1, max_length=256)]


class DeploymentObject(BaseModel):
    """A deployment. Chat requests name it in `model`."""

    id: str
    object: Literal["deployment"] = "deployment"
    name: str
    model: str
    base_model: str
    status: str
    created_at: int
    error: str | None


class DeploymentDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["deployment"] = "deployment"
    deleted: bool = True


def to_object(deployment: Deployment) -> DeploymentObject:
    """The wire form of a deployment."""
    return DeploymentObject(
        id=deployment.id,
        name=deployment.name,
        model=deployment.model,
        base_model=deployment.base_model,
        status=deployment.status.value,
        created_at=deployment.created_at,
        error=deployment.error,
    )


@router.post("")
async def create_deployment(caller: CanWriteDeployments, services: Chatting, body: DeploymentBody) -> DeploymentObject:
    """Deploy a base model, fine-tuned model or checkpoint; its engine starts in the background."""
    made = await run_in_threadpool(
        service.create_deployment, services.context, caller.project, name=body.name, model=body.model
    )
    services.chat.warm_soon(made.base_model)
    return to_object(made)


@router.get("")
def list_deployments(
    caller: CanReadDeployments,
    ctx: Using,
    request: Request,
    model: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> Page[DeploymentObject]:
    """The project's deployments by name, or only those of one model."""
    refuse_unknown_query(request, LIST_QUERY)
    found = sorted(service.list_deployments(ctx, caller.project, model=model), key=lambda one: one.name)
    if after is not None:
        place = next((place for place, one in enumerate(found) if one.id == after), None)
        if place is None:
            raise NotFound(f"There is no deployment {after[:100]!r}.", code="deployment_not_found", param="after")
        found = found[place + 1 :]
    return page(found, limit, to_object, lambda one: one.id)


@router.get("/{name}")
def get_deployment(caller: CanReadDeployments, ctx: Using, name: str) -> DeploymentObject:
    """One deployment."""
    return to_object(service.get_deployment(ctx, caller.project, name))


@router.delete("/{name}")
def delete_deployment(caller: CanWriteDeployments, ctx: Using, name: str) -> DeploymentDeleted:
    """Take the name back; the model stays."""
    found = service.get_deployment(ctx, caller.project, name)
    service.delete_deployment(ctx, caller.project, name)
    return DeploymentDeleted(id=found.id)
