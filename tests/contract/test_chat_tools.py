"""Tools and JSON answers from live models through the official client: the embedded one, and Phi-3's tokenizer."""

import json
from typing import Annotated, Any

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.api_server import Server

SMOL = "smollm2-135m-instruct"
PHI = "phi-3-tiny-random"
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather in Paris?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city now", "parameters": CITY, "strict": True},
}
TIME: Any = {"type": "function", "function": {"name": "get_time"}}


class Parcel(pydantic.BaseModel):
    """What is asked for as JSON; bounded, because random weights never end a text by themselves."""

    number: int = pydantic.Field(ge=0, le=999)
    late: bool
    notes: list[Annotated[str, pydantic.Field(max_length=10)]] = pydantic.Field(max_length=2)


@pytest.fixture(scope="module", autouse=True)
def _models(server: Server, model_home: Any) -> None:
    """Both models are installed on the server."""
    for name in (SMOL, PHI):
        (server.ctx.home / "models" / name).symlink_to(model_home / "models" / name)


def ask(server: Server, **options: Any) -> Any:
    """A greedy answer of the embedded model."""
    body = {"model": SMOL, "messages": QUESTION, "temperature": 0, "max_tokens": 60}
    return server.client().chat.completions.create(**{**body, **options})


def arguments_fit(text: str) -> bool:
    """Whether a call's arguments are JSON of CITY, spaced as training examples are."""
    found = json.loads(text)
    return (
        list(found) == ["city", "unit"]
        and len(found["city"]) <= 20
        and found["unit"] in ("celsius", "fahrenheit")
        and json.dumps(found, ensure_ascii=False) == text
    )


def test_a_call_its_answer_and_the_reply(server: Server) -> None:
    """The round trip: a call with an id, the tool's message, and a reply that is text and makes use of it."""
    called = ask(server, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False).choices[0]
    assert called.finish_reason == "tool_calls"
    assert called.message.content is None
    (call,) = called.message.tool_calls
    assert call.id.startswith("call_")
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert arguments_fit(call.function.arguments)
    assert json.loads(call.function.arguments)["city"] == "Paris"
    answer = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "rain"}'}
    reply = ask(server, messages=[*QUESTION, called.message, answer], tools=[WEATHER], tool_choice="none").choices[0]
    assert reply.finish_reason == "stop"
    assert "21" in reply.message.content
    assert reply.message.tool_calls is None


@pytest.mark.parametrize("model", [SMOL, PHI])
def test_a_named_function_is_called_once_even_by_random_weights(server: Server, model: str) -> None:
    """Each of several sampled choices is one valid call of that function."""
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask(server, model=model, tools=[TIME, WEATHER], tool_choice=choice, n=3, seed=2, temperature=1.0)
    for one in answer.choices:
        assert one.finish_reason == "tool_calls"
        (call,) = one.message.tool_calls
        assert call.function.name == "get_weather"
        assert arguments_fit(call.function.arguments)
    ids = [one.message.tool_calls[0].id for one in answer.choices]
    assert len(set(ids)) == 3


def test_allowed_tools_narrow_the_choice(server: Server) -> None:
    """Only functions that are allowed are called, though all are described."""
    allowed: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TIME]}}
    answer = ask(server, tools=[WEATHER, TIME], tool_choice=allowed, parallel_tool_calls=False)
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["get_time"]


def test_a_streamed_call_is_the_whole_one_in_openais_pieces(server: Server) -> None:
    """First id, type and name with empty arguments, then arguments alone; joined they are the plain answer's."""
    options: Any = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 150}
    whole = ask(server, **options).choices[0].message.tool_calls
    chunks = [chunk.choices[0] for chunk in ask(server, **options, stream=True)]
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
    assert chunks[0].delta.role == "assistant"
    assert chunks[-1].finish_reason == "tool_calls"
    assert len(pieces) > 4
    calls: dict[int, list[str]] = {}
    for piece in pieces:
        if piece.index not in calls:
            assert (piece.type, piece.id[:5], piece.function.arguments) == ("function", "call_", "")
            calls[piece.index] = [piece.function.name, ""]
        else:
            assert (piece.id, piece.type, piece.function.name) == (None, None, None)
            calls[piece.index][1] += piece.function.arguments
    assert list(calls.values()) == [[call.function.name, call.function.arguments] for call in whole]


def test_a_call_that_the_limit_cuts_keeps_its_beginning(server: Server) -> None:
    """finish_reason length, and arguments that are the beginning of what would have come."""
    options: Any = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    whole, cut = (ask(server, **options, max_tokens=most).choices[0] for most in (60, 22))
    assert cut.finish_reason == "length"
    assert whole.message.tool_calls[0].function.arguments.startswith(cut.message.tool_calls[0].function.arguments)


def test_text_stays_text_while_tools_are_offered(server: Server) -> None:
    """Under auto the untuned model answers in words; what it says streams piece by piece and is told whole."""
    options: Any = {"tools": [WEATHER], "max_tokens": 25}
    whole = ask(server, **options).choices[0]
    chunks = list(ask(server, **options, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.message.content
    assert len(chunks) > 15


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.0, "seed": 3, "n": 3}])
@pytest.mark.parametrize("model", [SMOL, PHI])
def test_parse_gives_pydantic_models(server: Server, model: str, options: dict[str, Any]) -> None:
    """The client's own helper sends a strict schema and reads every choice back as the model class."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Parcel 12 is late. Answer as JSON."}]
    bias = {"logit_bias": {"0": -100}, "stop": ["never said"], "frequency_penalty": 0.2}
    answer = server.client().chat.completions.parse(
        model=model, messages=messages, response_format=Parcel, max_tokens=120, **bias, **options
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Parcel)


def test_streamed_json_is_the_whole_one(server: Server) -> None:
    """Pieces joined are the plain answer, which is a JSON object; `length` leaves the beginning of it."""
    options: Any = {
        "messages": [{"role": "user", "content": "Name a colour as JSON."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY, "strict": True}},
    }
    whole = ask(server, **options).choices[0]
    assert json.loads(whole.message.content)["unit"]
    streamed = ask(server, **options, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole.message.content
    cut = ask(server, **options, max_tokens=4).choices[0]
    assert cut.finish_reason == "length"
    assert whole.message.content.startswith(cut.message.content)


def test_free_and_held_answers_share_the_engine(server: Server) -> None:
    """A free answer is the same alone and beside answers that are held to a schema."""
    free = ask(server, max_tokens=40).choices[0].message.content
    client = server.client()
    stream = client.chat.completions.create(
        model=SMOL,
        messages=QUESTION,
        temperature=1.0,
        n=4,
        max_tokens=120,
        stream=True,
        response_format={"type": "json_object"},
    )
    with stream:
        next(iter(stream))
        assert ask(server, max_tokens=40).choices[0].message.content == free


def test_a_schema_that_cannot_be_enforced_is_a_400(server: Server) -> None:
    """Strict: OpenAI's words with the path. Not strict: what cannot be enforced is ignored, nonsense is refused."""
    shape = {**CITY, "properties": {"city": {"type": "string", "not": {"const": ""}}}, "required": ["city"]}

    def form(schema: Any, strict: bool) -> Any:
        return {"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": strict}}

    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, response_format=form(shape, True))
    assert refused.value.param == "response_format.json_schema.schema.properties.city.not"
    assert json.loads(ask(server, response_format=form(shape, False)).choices[0].message.content)
    with pytest.raises(openai.BadRequestError) as nonsense:
        ask(server, response_format=form({"type": "object", "properties": {"a": {"type": "thing"}}}, False))
    assert (nonsense.value.code, nonsense.value.param) == ("grammar_refused", "response_format")
