"""Deployments on the wire: name a model, change what answers, go back, try it, and take the name away."""

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from smedje.api.auth import CanChat, CanReadDeployments, CanWriteDeployments
from smedje.api.bodies import Body
from smedje.api.management.deployment_samples import samples
from smedje.api.paging import Page, page, refuse_unknown_query
from smedje.api.state import Chatting, Using
from smedje.domain.conversations import ChatRequest, Sampling
from smedje.domain.deployments import Deployment, Revision
from smedje.errors import NotFound
from smedje.services import deployments as service

LIST_QUERY = frozenset({"model", "after", "limit"})

router = APIRouter(prefix="/api/deployments", tags=["deployments"])


class DeploymentBody(Body):
    """What to deploy, and under which name."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    model: Annotated[str, Field(min_length=1, max_length=256)]


class CanaryBody(Body):
    """A second model for a share of the requests, in per cent. percent 0 ends it; model may be left out after that."""

    model: Annotated[str | None, Field(min_length=1, max_length=256)] = None
    percent: int


class ChangeBody(Body):
    """What is to be different; what is left out stays."""

    model: Annotated[str | None, Field(min_length=1, max_length=256)] = None
    canary: CanaryBody | None = None


class RollbackBody(Body):
    """Which revision's model is to answer again; left out: the model before this one."""

    revision: Annotated[int | None, Field(ge=1)] = None


class TestBody(Body):
    """A message to try the deployment with."""

    message: Annotated[str, Field(min_length=1, max_length=4000)] = "Hello"


class CanaryObject(BaseModel):
    """A model that answers a share of the requests."""

    model: str
    base_model: str
    percent: int


class DeploymentObject(BaseModel):
    """A deployment. Chat requests name it in `model`. revision: counts its models."""

    id: str
    object: Literal["deployment"] = "deployment"
    name: str
    model: str
    base_model: str
    status: str
    created_at: int
    error: str | None
    revision: int
    canary: CanaryObject | None


class RevisionObject(BaseModel):
    """A model that the deployment has answered with."""

    object: Literal["deployment.revision"] = "deployment.revision"
    revision: int
    model: str
    created_at: int


class RevisionList(BaseModel):
    """All revisions, newest first; never paged."""

    object: Literal["list"] = "list"
    data: list[RevisionObject]


class TestObject(BaseModel):
    """What a deployment said, and how long it took. seconds: from the request to the whole answer, waking included."""

    object: Literal["deployment.test"] = "deployment.test"
    name: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class SamplesObject(BaseModel):
    """Programs that ask the deployment. They read the key from the environment variable SMEDJE_KEY."""

    object: Literal["deployment.samples"] = "deployment.samples"
    name: str
    python: str
    javascript: str
    csharp: str
    curl: str


class DeploymentDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["deployment"] = "deployment"
    deleted: bool = True


def to_object(deployment: Deployment) -> DeploymentObject:
    """The wire form of a deployment."""
    canary = None
    if deployment.canary is not None:
        served = deployment.canary.served
        canary = CanaryObject(model=served.model, base_model=served.base_model, percent=deployment.canary.percent)
    return DeploymentObject(
        id=deployment.id,
        name=deployment.name,
        model=deployment.model,
        base_model=deployment.base_model,
        status=deployment.status.value,
        created_at=deployment.created_at,
        error=deployment.error,
        revision=deployment.revision,
        canary=canary,
    )


def to_revision(revision: Revision) -> RevisionObject:
    """The wire form of a revision."""
    return RevisionObject(revision=revision.number, model=revision.model, created_at=revision.created_at)


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


@router.patch("/{name}")
async def change_deployment(
    caller: CanWriteDeployments, services: Chatting, name: str, body: ChangeBody
) -> DeploymentObject:
    """Point the name at another model, or give a second one a share; the next request sees it."""
    change = service.Change(
        model=body.model,
        canary_model=None if body.canary is None else body.canary.model,
        canary_percent=None if body.canary is None else body.canary.percent,
    )
    changed = await run_in_threadpool(service.change_deployment, services.context, caller.project, name, change)
    services.chat.warm_soon(changed.base_model)
    return to_object(changed)


@router.post("/{name}/rollback")
def roll_back(caller: CanWriteDeployments, ctx: Using, name: str, body: RollbackBody) -> DeploymentObject:
    """Answer again with an earlier model, at once; a canary ends."""
    return to_object(service.roll_back(ctx, caller.project, name, revision=body.revision))


@router.get("/{name}/revisions")
def list_revisions(caller: CanReadDeployments, ctx: Using, request: Request, name: str) -> RevisionList:
    """The models that the deployment has answered with, newest first."""
    refuse_unknown_query(request, frozenset())
    return RevisionList(data=[to_revision(one) for one in service.list_revisions(ctx, caller.project, name)])


@router.post("/{name}/test")
async def test_deployment(caller: CanChat, services: Chatting, name: str, body: TestBody) -> TestObject:
    """Ask the deployment once, waking its engine if need be."""
    await run_in_threadpool(service.get_deployment, services.context, caller.project, name)
    asked = ChatRequest(
        model=name,
        messages=({"role": "user", "content": body.message},),
        sampling=Sampling(temperature=0.0),
        max_tokens=32,
    )
    began = time.monotonic()
    answer = await (await services.chat.open(caller, asked)).collect()
    return TestObject(
        name=name,
        text=answer.choices[0].text,
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        seconds=round(time.monotonic() - began, 3),
    )


@router.get("/{name}/samples")
def get_samples(caller: CanReadDeployments, services: Chatting, request: Request, name: str) -> SamplesObject:
    """Programs in four languages that ask the deployment."""
    refuse_unknown_query(request, frozenset())
    found = service.get_deployment(services.context, caller.project, name)
    base = services.public_url or str(request.base_url)
    code = samples(found.name, f"{base.rstrip('/')}/v1")
    return SamplesObject.model_validate({"name": found.name, **code})


@router.delete("/{name}")
def delete_deployment(caller: CanWriteDeployments, ctx: Using, name: str) -> DeploymentDeleted:
    """Take the name back; the model stays."""
    found = service.get_deployment(ctx, caller.project, name)
    service.delete_deployment(ctx, caller.project, name)
    return DeploymentDeleted(id=found.id)
