"""Inference under Azure's paths: a deployment's own path, and the model inference route of serverless endpoints.

Knows paths, api-version and the `extra-parameters` header; the bodies and answers are those of `api/chat_wire.py`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Body, Header, Request
from pydantic import BaseModel, ValidationError

from smedje.api import completion_wire
from smedje.api.auth import CanChat, CanReadDeployments
from smedje.api.chat_body import ChatBody
from smedje.api.chat_wire import ChatCompletion, answer
from smedje.api.errors import from_validation
from smedje.api.state import Chatting, Using
from smedje.domain.deployments import Deployment
from smedje.domain.projects import Project
from smedje.errors import InvalidRequest
from smedje.services import deployments as service
from smedje.services.context import Context

B = TypeVar("B", bound=BaseModel)

UNKNOWN = "extra_forbidden"

router = APIRouter(tags=["azure"])

JsonObject = Annotated[dict[str, Any], Body()]
ExtraParameters = Annotated[Literal["error", "drop", "pass-through"], Header(alias="extra-parameters")]


class ModelInfo(BaseModel):
    """Which model answers at this endpoint, in Azure AI Inference's shape."""

    model_name: str
    model_type: Literal["chat-completion"] = "chat-completion"
    model_provider_name: str


@router.post("/openai/deployments/{name}/chat/completions", response_model=ChatCompletion)
async def create_completion(caller: CanChat, services: Chatting, request: Request, name: str, given: JsonObject) -> Any:
    """Answer messages with the deployment, or model, named in the path; `model` in the body says nothing here."""
    body = _checked(ChatBody, {**given, "model": name})
    return await answer(services, caller, request, body)


@router.post("/openai/deployments/{name}/completions", response_model=completion_wire.Completion)
async def continue_prompt(caller: CanChat, services: Chatting, request: Request, name: str, given: JsonObject) -> Any:
    """Continue a prompt with the deployment, or model, named in the path."""
    body = _checked(completion_wire.CompletionBody, {**given, "model": name})
    return await completion_wire.answer(services, caller, request, body)


@router.get("/openai/deployments/{name}/info")
def get_deployment_info(caller: CanReadDeployments, ctx: Using, name: str) -> ModelInfo:
    """Which model the deployment answers with."""
    return _info(service.get_deployment(ctx, caller.project, name))


# A serverless endpoint has a host of its own, and these two at its root.
@router.post("/chat/completions", response_model=ChatCompletion)
@router.post("/models/chat/completions", response_model=ChatCompletion)
async def create_inference_completion(
    caller: CanChat, services: Chatting, request: Request, given: JsonObject, extra: ExtraParameters = "error"
) -> Any:
    """Answer messages as a serverless endpoint does. Without `model` the project's only deployment answers.

    extra-parameters: what becomes of fields that are not known here. `error` and `pass-through` refuse them by name,
    because there is nobody behind this server to pass them to; `drop` leaves them out.
    """
    if given.get("model") is None:
        given = {**given, "model": _only_deployment(services.context, caller.project).name}
    body = _checked(ChatBody, given, drop=extra == "drop")
    return await answer(services, caller, request, body)


@router.get("/info")
@router.get("/models/info")
def get_info(caller: CanReadDeployments, ctx: Using) -> ModelInfo:
    """Which model answers when no model is named: the project's only deployment."""
    return _info(_only_deployment(ctx, caller.project))


def _checked(kind: type[B], given: dict[str, Any], *, drop: bool = False) -> B:
    """The body; with `drop`, without the top-level fields that nobody knows. Raises InvalidRequest."""
    try:
        return kind.model_validate(given)
    except ValidationError as wrong:
        problems: Sequence[Any] = [{**one, "loc": ("body", *one["loc"])} for one in wrong.errors()]
        unknown = {one["loc"][1] for one in problems if one["type"] == UNKNOWN and len(one["loc"]) == 2}
        if drop and unknown:
            return _checked(kind, {name: value for name, value in given.items() if name not in unknown})
        raise from_validation(problems) from wrong


def _only_deployment(ctx: Context, project: Project) -> Deployment:
    found = service.list_deployments(ctx, project)
    if len(found) != 1:
        names = ", ".join(sorted(one.name for one in found)[:10]) or "none"
        raise InvalidRequest(
            f"The request names no model, and this project has {len(found)} deployments ({names}). "
            "Name one of them in `model`.",
            code="missing_field",
            param="model",
        )
    return found[0]


def _info(deployment: Deployment) -> ModelInfo:
    return ModelInfo(model_name=deployment.model, model_provider_name=deployment.base_model)
