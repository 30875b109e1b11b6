"""OpenAI's older completions route: a prompt that the model continues as it stands."""

from typing import Any

from fastapi import APIRouter, Request

from smedje.api.auth import CanChat
from smedje.api.completion_wire import Completion, CompletionBody, answer
from smedje.api.state import Chatting

router = APIRouter(prefix="/v1", tags=["chat"])


@router.post("/completions", response_model=Completion)
async def create_completion(caller: CanChat, services: Chatting, request: Request, body: CompletionBody) -> Any:
    """Continue a prompt with the model, deployment or checkpoint that `model` names; no chat template is used."""
    return await answer(services, caller, request, body)
