"""Chat completions on the wire, plain and streamed, in the shapes that OpenAI's and Azure's routes share.

The body of a request is `api/chat_body.py`.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from smedje.api.bodies import Absent
from smedje.api.chat_body import ChatBody, to_request
from smedje.api.sse import EventStream
from smedje.api.state import Services
from smedje.api.tool_body import ToolCallFunctionObject, ToolCallObject
from smedje.domain.ids import COMPLETION, new_id
from smedje.domain.projects import Principal
from smedje.services.chat_stream import ChatAnswer, ChatChoice, ChatDelta, ChatStream, ChatUsage
from smedje.services.chat_text import CallDelta, TokenText

ONLY_TIER = "default"
T = TypeVar("T")


class TopLogprob(BaseModel):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobObject(TopLogprob):
    """A chosen token and the likeliest ones at its place."""

    top_logprobs: list[TopLogprob]


class LogprobsObject(BaseModel):
    """Log probabilities of a choice."""

    content: list[TokenLogprobObject]
    refusal: None = None


class AnswerMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    tool_calls: Absent[list[ToolCallObject] | None] = None


class ChoiceObject(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: LogprobsObject | None
    finish_reason: str


class PromptDetails(BaseModel):
    """Prompt tokens that were not computed again, because an earlier prompt began with them."""

    cached_tokens: int
    audio_tokens: int = 0


class CompletionDetails(BaseModel):
    """Kinds of completion tokens that these models do not have."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageObject(BaseModel):
    """Counted tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails = CompletionDetails()


class ChatCompletion(BaseModel):
    """OpenAI's chat completion object.

    system_fingerprint: with the same seed, the same fingerprint gives the same answer. service_tier: there when the
    request names one; there is one tier.
    """

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChoiceObject]
    usage: UsageObject
    system_fingerprint: str
    service_tier: Absent[str | None] = None


def to_completion(answer: ChatAnswer, body: ChatBody) -> ChatCompletion:
    """The wire form of a whole answer."""
    choices = [
        ChoiceObject(
            index=choice.index,
            message=_message(choice),
            logprobs=_logprobs(choice.logprobs) if body.logprobs else None,
            finish_reason=choice.finish.value,
        )
        for choice in answer.choices
    ]
    return ChatCompletion(
        id=new_id(COMPLETION),
        created=int(time.time()),
        model=body.model,
        choices=choices,
        usage=to_usage(answer.usage),
        system_fingerprint=answer.fingerprint,
        service_tier=None if body.service_tier is None else ONLY_TIER,
    )


def to_usage(usage: ChatUsage) -> UsageObject:
    """The wire form of counted tokens."""
    return UsageObject(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=usage.cached_tokens),
    )


async def answer(services: Services, caller: Principal, request: Request, body: ChatBody) -> Any:
    """The answer to a body: a whole completion, a stream of chunks, or nothing for a client that hung up."""
    stream = await services.chat.prepare(caller, to_request(body))
    begun = await unless_gone(request, stream.begin())
    if begun is None:
        return nobody_listens()
    if body.stream:
        return EventStream(_chunks(begun, body), begun.deltas)
    whole = await unless_gone(request, begun.collect())
    return nobody_listens() if whole is None else to_completion(whole, body)


def nobody_listens() -> Response:
    """What is answered to a client that hung up."""
    return Response(status_code=499)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work comes to, or None once the client has closed its connection: nobody generates for nobody."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        watching.cancel()
        working.cancel()
        await asyncio.gather(watching, working, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _chunks(stream: ChatStream, body: ChatBody) -> AsyncGenerator[dict[str, Any], None]:
    frame: dict[str, Any] = {
        "id": new_id(COMPLETION),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": stream.fingerprint,
        **({} if body.service_tier is None else {"service_tier": ONLY_TIER}),
    }
    # With include_usage every chunk but the last carries a null usage, as OpenAI documents.
    tail: dict[str, Any] = {"usage": None} if body.with_usage else {}
    async with aclosing(stream.deltas) as deltas:
        for index in range(body.n or 1):
            first = {"role": "assistant", "content": "", "refusal": None}
            yield {**frame, "choices": [_choice(index, first, None, None)], **tail}
        async for delta in deltas:
            for choice in _choices(delta, with_logprobs=bool(body.logprobs)):
                yield {**frame, "choices": [choice], **tail}
    if body.with_usage:
        yield {**frame, "choices": [], "usage": to_usage(stream.usage).model_dump()}


def _choices(delta: ChatDelta, *, with_logprobs: bool) -> list[dict[str, Any]]:
    """A delta as chunks: text first, then calls, then the finish reason alone."""
    found = []
    if delta.text or delta.logprobs:
        logprobs = _logprobs(delta.logprobs).model_dump() if with_logprobs else None
        found.append(_choice(delta.index, {"content": delta.text}, logprobs, None))
    found += [_choice(delta.index, {"tool_calls": [_call_piece(call)]}, None, None) for call in delta.calls]
    if delta.finish is not None:
        found.append(_choice(delta.index, {}, None, delta.finish.value))
    return found


def _call_piece(call: CallDelta) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _message(choice: ChatChoice) -> AnswerMessage:
    calls = [
        ToolCallObject(id=call.id, function=ToolCallFunctionObject(name=call.name or "", arguments=call.arguments))
        for call in choice.calls
    ]
    return AnswerMessage(content=None if calls and not choice.text else choice.text, tool_calls=calls or None)


def _choice(index: int, delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(tokens: tuple[TokenText, ...]) -> LogprobsObject:
    return LogprobsObject(
        content=[
            TokenLogprobObject(
                **_token(token.text, token.logprob), top_logprobs=[TopLogprob(**_token(*pair)) for pair in token.top]
            )
            for token in tokens
        ]
    )


def _token(text: str, logprob: float) -> dict[str, Any]:
    raw = text.encode("utf-8", "surrogateescape")
    return {"token": shown(text), "logprob": logprob, "bytes": list(raw)}


def shown(text: str) -> str:
    """A token's text as JSON can carry it: pieces of characters are replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
