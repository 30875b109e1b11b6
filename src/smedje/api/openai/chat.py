"""OpenAI's chat completions route."""

from typing import Any

from fastapi import APIRouter, Request

from smedje.api.auth import CanChat
from smedje.api.chat_body import ChatBody
from smedje.api.chat_wire import ChatCompletion, answer
from smedje.api.state import Chatting

router = APIRouter(prefix="/v1/chat", tags=["chat"])


@router.post("/completions", response_model=ChatCompletion)
async def create_completion(caller: CanChat, services: Chatting, request: Request, body: ChatBody) -> Any:
    """Answer messages with the model, deployment or checkpoint that `model` names; streamed when `stream` is true."""
    return await answer(services, caller, request, body)
