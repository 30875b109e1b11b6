"""The body of a chat completion and the request behind it, for OpenAI's and Azure's routes.

Which fields are ignored and which are refused by name stands in `api/bodies.py`; what tools and formats look like in
`api/tool_body.py`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from smedje.api.bodies import Body
from smedje.api.tool_body import ResponseFormatBody, ToolCallBody, to_answer_format, to_tool_use
from smedje.domain.conversations import ChatRequest, Sampling
from smedje.errors import InvalidRequest, UnsupportedField

ROLES = ("developer", "system", "user", "assistant", "tool")
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
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None
    annotations: list[Any] | None = None
    function_call: Any = None
    audio: Any = None


class SamplingBody(Body):
    """What the bodies of chat and of plain completions have in common: who answers, how its tokens are drawn, and how
    the answer is sent."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    n: Annotated[int | None, Field(ge=1, le=128)] = None
    stop: Stops = None
    seed: Annotated[int | None, Field(ge=-SEED_RANGE, lt=SEED_RANGE)] = None
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    logit_bias: LogitBias | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with a chunk that carries the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatBody(SamplingBody):
    """The body of a chat completion."""

    wire_name: ClassVar[str] = "chat"

    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    response_format: ResponseFormatBody | None = None
    tools: Annotated[list[dict[str, Any]] | None, Field(max_length=128)] = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None


def to_sampling(body: SamplingBody, *, top_logprobs: int | None) -> Sampling:
    """How a body wants tokens drawn. Raises InvalidRequest for `stream_options` without `stream`."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "stream_options is only allowed when stream is true.", code="invalid_value", param="stream_options"
        )
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        top_logprobs=top_logprobs,
        logit_bias=tuple((body.logit_bias or {}).items()),
    )


def to_request(body: ChatBody) -> ChatRequest:
    """The request behind a body. Raises InvalidRequest or UnsupportedField naming the field."""
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", code="invalid_value", param="top_logprobs")
    return ChatRequest(
        model=body.model,
        messages=_messages(body.messages),
        sampling=to_sampling(body, top_logprobs=(body.top_logprobs or 0) if body.logprobs else None),
        max_tokens=_max_tokens(body),
        stop=tuple(body.stop or ()),
        n=body.n or 1,
        answer_format=to_answer_format(body.response_format),
        tool_use=to_tool_use(body.tools, body.tool_choice, body.parallel_tool_calls),
    )


def _messages(messages: list[MessageBody]) -> tuple[dict[str, Any], ...]:
    """The messages as plain dicts. Raises InvalidRequest for one that is malformed, or a call without its answer."""
    unanswered: dict[str, str] = {}
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role == "tool":
            if message.tool_call_id not in unanswered:
                raise InvalidRequest(
                    f"{where} has the role 'tool' and answers {message.tool_call_id!r}. It must follow an assistant "
                    "message whose tool_calls has that id.",
                    code="invalid_tool_messages",
                    param=f"{where}.tool_call_id",
                )
            del unanswered[message.tool_call_id]
            continue
        _all_answered(unanswered)
        calls = message.tool_calls if message.role == "assistant" else None
        unanswered = {call.id: where for call in calls or []}
    _all_answered(unanswered)
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _all_answered(unanswered: dict[str, str]) -> None:
    if unanswered:
        where = next(iter(unanswered.values()))
        raise InvalidRequest(
            f"{where} has tool_calls, so messages with the role 'tool' must answer each of them. Without an answer: "
            f"{', '.join(unanswered)}.",
            code="invalid_tool_messages",
            param=where,
        )


def _message(message: MessageBody, where: str) -> dict[str, Any]:
    for name in ("function_call", "audio"):
        if getattr(message, name):
            raise UnsupportedField(
                f"{where}.{name} is not offered by this server. Leave it out.", param=f"{where}.{name}"
            )
    if message.role == "function":
        raise UnsupportedField(
            f"{where} has the deprecated role 'function'. Use tools, tool_calls and the role 'tool'.",
            param=f"{where}.role",
        )
    if message.role not in ROLES:
        raise InvalidRequest(
            f"{where} has the role {message.role[:60]!r}. Use {', '.join(ROLES)}.",
            code="unrecognized_role",
            param=f"{where}.role",
        )
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest(
            f"{where} has tool_calls; only an assistant's message has.",
            code="invalid_value",
            param=f"{where}.tool_calls",
        )
    without = message.role == "assistant" and (message.refusal or message.tool_calls)
    if message.content is None and not without:
        raise InvalidRequest(f"{where} has no content.", code="missing_field", param=f"{where}.content")
    kept: dict[str, Any] = {"role": message.role, "content": message.content}
    for name in ("name", "refusal", "tool_call_id"):
        if getattr(message, name) is not None:
            kept[name] = getattr(message, name)
    if message.tool_calls:
        kept["tool_calls"] = [call.model_dump(exclude={"index"}) for call in message.tool_calls]
    return kept


def _max_tokens(body: ChatBody) -> int | None:
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise InvalidRequest(
            "max_tokens and max_completion_tokens differ. Give one of them.",
            code="conflicting_fields",
            param="max_tokens",
        )
    return body.max_completion_tokens if body.max_tokens is None else body.max_tokens
