"""Chat completions on the wire, plain and streamed, in the shapes that OpenAI's and Azure's routes share.

Which fields are ignored and which are refused by name stands in `api/bodies.py`.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, Field
from starlette.responses import Response

from smedje.api.bodies import Body
from smedje.api.sse import event_stream
from smedje.api.state import Services
from smedje.domain.conversations import ChatRequest, Sampling
from smedje.domain.ids import COMPLETION, new_id
from smedje.domain.projects import Principal
from smedje.errors import InvalidRequest, UnsupportedField
from smedje.services.chat import ChatAnswer, ChatDelta, ChatStream, ChatUsage
from smedje.services.chat_text import TokenText

ROLES = ("developer", "system", "user", "assistant")
MOST_MESSAGES = 2048
MOST_STOPS = 4
SEED_RANGE = 2**63


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopText = Annotated[str, Field(min_length=1, max_length=1024)]
Stops = Annotated[
    Annotated[list[StopText], Field(max_length=MOST_STOPS)] | None,
    BeforeValidator(_one_or_many, json_schema_input_type=StopText | list[StopText] | None),
]


LogitBias = Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)]


class StreamOptionsBody(Body):
    """`include_obfuscation` pads chunks against traffic analysis at OpenAI; here it has no effect."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class MessageBody(Body):
    """One message. content: a text, or a list of text parts."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None
    annotations: list[Any] | None = None
    function_call: Any = None
    audio: Any = None


class ChatBody(Body):
    """The body of a chat completion."""

    wire_name: ClassVar[str] = "chat"

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    n: Annotated[int | None, Field(ge=1, le=128)] = None
    stop: Stops = None
    seed: Annotated[int | None, Field(ge=-SEED_RANGE, lt=SEED_RANGE)] = None
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    logit_bias: LogitBias | None = None


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
    content: str
    refusal: str | None = None


class ChoiceObject(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: LogprobsObject | None
    finish_reason: str


class PromptDetails(BaseModel):
    """Prompt tokens that were not computed again, because an earlier prompt began with them."""

    cached_tokens: int


class UsageObject(BaseModel):
    """Counted tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(BaseModel):
    """OpenAI's chat completion object."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChoiceObject]
    usage: UsageObject


def to_request(body: ChatBody) -> ChatRequest:
    """The request behind a body. Raises InvalidRequest or UnsupportedField naming the field."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "stream_options is only allowed when stream is true.", code="invalid_value", param="stream_options"
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", code="invalid_value", param="top_logprobs")
    return ChatRequest(
        model=body.model,
        messages=tuple(_message(message, f"messages[{index}]") for index, message in enumerate(body.messages)),
        sampling=Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            logit_bias=tuple((body.logit_bias or {}).items()),
        ),
        max_tokens=_max_tokens(body),
        stop=tuple(body.stop or ()),
        n=body.n or 1,
    )


def to_completion(answer: ChatAnswer, body: ChatBody) -> ChatCompletion:
    """The wire form of a whole answer."""
    choices = [
        ChoiceObject(
            index=choice.index,
            message=AnswerMessage(content=choice.text),
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
    asked = to_request(body)
    stream = await services.chat.open(caller, asked)
    if body.stream:
        return event_stream(_chunks(stream, body))
    whole = await unless_gone(request, stream)
    # The client hung up: nobody reads this.
    return Response(status_code=499) if whole is None else to_completion(whole, body)


async def unless_gone(request: Request, stream: ChatStream) -> ChatAnswer | None:
    """The whole answer, or None once the client has closed its connection, so that nobody generates for nobody."""
    collecting = asyncio.create_task(stream.collect())
    watching = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({collecting, watching}, return_when=asyncio.FIRST_COMPLETED)
        return collecting.result() if collecting.done() else None
    finally:
        watching.cancel()
        collecting.cancel()
        await asyncio.gather(watching, collecting, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _chunks(stream: ChatStream, body: ChatBody) -> AsyncGenerator[dict[str, Any], None]:
    frame: dict[str, Any] = {
        "id": new_id(COMPLETION),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": body.model,
    }
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    # With include_usage every chunk but the last carries a null usage, as OpenAI documents.
    tail: dict[str, Any] = {"usage": None} if with_usage else {}
    async with aclosing(stream.deltas) as deltas:
        for index in range(body.n or 1):
            first = {"role": "assistant", "content": "", "refusal": None}
            yield {**frame, "choices": [_choice(index, first, None, None)], **tail}
        async for delta in deltas:
            for choice in _choices(delta, with_logprobs=bool(body.logprobs)):
                yield {**frame, "choices": [choice], **tail}
    if with_usage:
        yield {**frame, "choices": [], "usage": to_usage(stream.usage).model_dump()}


def _choices(delta: ChatDelta, *, with_logprobs: bool) -> list[dict[str, Any]]:
    """A delta as chunks: text first, then the finish reason alone."""
    found = []
    if delta.text or delta.logprobs:
        logprobs = _logprobs(delta.logprobs).model_dump() if with_logprobs else None
        found.append(_choice(delta.index, {"content": delta.text}, logprobs, None))
    if delta.finish is not None:
        found.append(_choice(delta.index, {}, None, delta.finish.value))
    return found


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
    # A token that is a piece of a character has no text of its own, so its bytes are not known here.
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode("utf-8"))}


def _message(message: MessageBody, where: str) -> dict[str, Any]:
    for name in ("tool_calls", "function_call", "audio"):
        if getattr(message, name):
            raise UnsupportedField(
                f"{where}.{name} is not offered by this server. Leave it out.", param=f"{where}.{name}"
            )
    if message.role in ("tool", "function"):
        raise UnsupportedField(
            f"{where} has the role {message.role!r}; tools are not offered by this server.", param=f"{where}.role"
        )
    if message.role not in ROLES:
        raise InvalidRequest(
            f"{where} has the role {message.role[:60]!r}. Use {', '.join(ROLES)}.",
            code="unrecognized_role",
            param=f"{where}.role",
        )
    if message.content is None and not (message.role == "assistant" and message.refusal):
        raise InvalidRequest(f"{where} has no content.", code="missing_field", param=f"{where}.content")
    kept: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        kept["name"] = message.name
    if message.refusal is not None:
        kept["refusal"] = message.refusal
    return kept


def _max_tokens(body: ChatBody) -> int | None:
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise InvalidRequest(
            "max_tokens and max_completion_tokens differ. Give one of them.",
            code="conflicting_fields",
            param="max_tokens",
        )
    return body.max_completion_tokens if body.max_tokens is None else body.max_tokens
