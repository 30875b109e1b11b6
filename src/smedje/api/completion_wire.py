"""Plain completions on the wire: a prompt that the model continues as it stands, in OpenAI's older shape."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Request
from pydantic import BaseModel, Field

from smedje.api.chat_body import SamplingBody, to_sampling
from smedje.api.chat_wire import UsageObject, nobody_listens, shown, to_usage, unless_gone
from smedje.api.sse import EventStream
from smedje.api.state import Services
from smedje.domain.conversations import ChatRequest
from smedje.domain.ids import new_id
from smedje.domain.projects import Principal
from smedje.errors import UnsupportedField
from smedje.services.chat_stream import ChatStream
from smedje.services.chat_text import TokenText

PREFIX = "cmpl"
DEFAULT_TOKENS = 16

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionBody(SamplingBody):
    """The body of a plain completion. prompt: one text or one list of token ids; a list of one text counts as it."""

    wire_name: ClassVar[str] = "completion"

    prompt: str | TokenIds | list[str]
    max_tokens: Annotated[int | None, Field(ge=1)] = DEFAULT_TOKENS
    logprobs: Annotated[int | None, Field(ge=0, le=5)] = None


class LogprobsObject(BaseModel):
    """Log probabilities of a choice, as lists side by side."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class ChoiceObject(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: LogprobsObject | None
    finish_reason: str


class Completion(BaseModel):
    """OpenAI's completion object."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[ChoiceObject]
    usage: UsageObject
    system_fingerprint: str


async def answer(services: Services, caller: Principal, request: Request, body: CompletionBody) -> Any:
    """The answer to a body: a whole completion, a stream of chunks, or nothing for a client that hung up."""
    stream = await services.chat.prepare(caller, to_request(body))
    begun = await unless_gone(request, stream.begin())
    if begun is None:
        return nobody_listens()
    if body.stream:
        return EventStream(_chunks(begun, body), begun.deltas)
    whole = await unless_gone(request, begun.collect())
    if whole is None:
        return nobody_listens()
    choices = [
        ChoiceObject(
            index=choice.index,
            text=choice.text,
            logprobs=_logprobs(choice.logprobs, 0) if body.logprobs is not None else None,
            finish_reason=choice.finish.value,
        )
        for choice in whole.choices
    ]
    return Completion(
        id=new_id(PREFIX),
        created=int(time.time()),
        model=body.model,
        choices=choices,
        usage=to_usage(whole.usage),
        system_fingerprint=whole.fingerprint,
    )


def to_request(body: CompletionBody) -> ChatRequest:
    """The request behind a body. Raises InvalidRequest or UnsupportedField naming the field."""
    return ChatRequest(
        model=body.model,
        messages=(),
        prompt=_prompt(body.prompt),
        sampling=to_sampling(body, top_logprobs=body.logprobs),
        max_tokens=DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens,
        stop=tuple(body.stop or ()),
        n=body.n or 1,
    )


def _prompt(given: str | list[int] | list[str]) -> str | tuple[int, ...]:
    if isinstance(given, str):
        return given
    texts = [part for part in given if isinstance(part, str)]
    if not texts:
        return tuple(part for part in given if isinstance(part, int))
    if len(texts) > 1:
        raise UnsupportedField(
            "prompt lists several texts; this server takes one a request. Send them apart.", param="prompt"
        )
    return texts[0]


async def _chunks(stream: ChatStream, body: CompletionBody) -> AsyncGenerator[dict[str, Any], None]:
    frame: dict[str, Any] = {
        "id": new_id(PREFIX),
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": stream.fingerprint,
    }
    tail: dict[str, Any] = {"usage": None} if body.with_usage else {}
    told: dict[int, int] = {}
    async with aclosing(stream.deltas) as deltas:
        async for delta in deltas:
            offset = told.get(delta.index, 0)
            told[delta.index] = offset + len(delta.text)
            choice = {
                "index": delta.index,
                "text": delta.text,
                "logprobs": None if body.logprobs is None else _logprobs(delta.logprobs, offset).model_dump(),
                "finish_reason": None if delta.finish is None else delta.finish.value,
            }
            yield {**frame, "choices": [choice], **tail}
    if body.with_usage:
        yield {**frame, "choices": [], "usage": to_usage(stream.usage).model_dump()}


def _logprobs(tokens: tuple[TokenText, ...], offset: int) -> LogprobsObject:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return LogprobsObject(
        tokens=[shown(token.text) for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[{shown(text): logprob for text, logprob in token.top} for token in tokens]
        if any(token.top for token in tokens)
        else None,
        text_offset=offsets,
    )
