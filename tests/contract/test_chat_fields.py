"""Every field that the official clients can send, one by one: honoured, without effect, or refused by name.

The tables below are the whole truth: a field that a client knows and a table does not, fails the first test.
"""

import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from azure.ai.inference import ChatCompletionsClient
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.completion_create_params import CompletionCreateParamsBase as PlainParamsBase
from tests.api_server import TINY, Server

Answer = dict[str, Any]
# Instructions for tools do not fit into the byte tokenizer's 512 positions.
PHI = "phi-3-tiny-random"
QUESTION = [{"role": "user", "content": "hi"}]
# `model` and what the question is stand in every body.
BODY = {"model": TINY, "messages": QUESTION, "max_tokens": 6, "temperature": 0}
PLAIN = {"model": TINY, "prompt": "hi", "max_tokens": 6, "temperature": 0}
OBJECT = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": OBJECT, "strict": True}}


def text(answer: Answer) -> str:
    """The first choice's text."""
    choice = answer["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


# field -> (what is sent, whether the answer shows it, given the answer without it).
HONOURED: dict[str, tuple[Answer, Callable[[Answer, Answer], bool]]] = {
    "model": ({"model": "nobody"}, lambda answer, _: answer["error"]["code"] == "model_not_found"),
    "messages": ({"messages": [{"role": "developer", "content": "a"}, *QUESTION]}, lambda a, b: text(a) != text(b)),
    "max_tokens": ({"max_tokens": 3}, lambda answer, _: answer["usage"]["completion_tokens"] == 3),
    "max_completion_tokens": (
        {"max_tokens": None, "max_completion_tokens": 2},
        lambda answer, _: answer["usage"]["completion_tokens"] == 2,
    ),
    "temperature": ({"temperature": 2, "seed": 1}, lambda a, b: text(a) != text(b)),
    "top_p": ({"temperature": 2, "top_p": 0.0}, lambda a, b: text(a) == text(b)),
    "seed": ({"temperature": 1, "seed": 5, "n": 2}, lambda a, _: text(a) != a["choices"][1]["message"]["content"]),
    "n": ({"n": 3}, lambda answer, _: [choice["index"] for choice in answer["choices"]] == [0, 1, 2]),
    "stop": ({"stop": "never said"}, lambda a, b: text(a) == text(b)),
    "frequency_penalty": ({"frequency_penalty": 2, "max_tokens": 40}, lambda a, b: not text(a).startswith(text(b) * 3)),
    "presence_penalty": ({"presence_penalty": 2, "max_tokens": 40}, lambda a, b: not text(a).startswith(text(b) * 3)),
    "logit_bias": ({"logit_bias": {"84": 100}}, lambda answer, _: text(answer) == "Q" * 6),
    "logprobs": ({"logprobs": True}, lambda answer, _: len(answer["choices"][0]["logprobs"]["content"]) > 0),
    "top_logprobs": (
        {"logprobs": True, "top_logprobs": 2},
        lambda answer, _: len(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2,
    ),
    "stream_options": (
        {"stream": False, "stream_options": {"include_usage": True}},
        lambda answer, _: answer["error"]["param"] == "stream_options",
    ),
    "response_format": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": OBJECT}}, "max_tokens": 60},
        lambda answer, _: "".join(text(answer).split()) in ('{"ok":true}', '{"ok":false}'),
    ),
    "tools": (
        {"model": PHI, "tools": [TOOL], "tool_choice": "none"},
        lambda answer, _: answer["usage"]["prompt_tokens"] > 150,
    ),
    "tool_choice": (
        {
            "model": PHI,
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "max_tokens": 90,
        },
        lambda a, _: a["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"ok": '),
    ),
    "parallel_tool_calls": (
        {"model": PHI, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 90},
        lambda answer, _: len(answer["choices"][0]["message"]["tool_calls"]) == 1,
    ),
    "service_tier": ({"service_tier": "auto"}, lambda answer, _: answer["service_tier"] == "default"),
}
NO_EFFECT: dict[str, Any] = {
    "user": "u-1",
    "safety_identifier": "s-1",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "implicit"},
    "metadata": {"a": "b"},
}
REFUSED: dict[str, Any] = {
    "audio": {"voice": "x", "format": "wav"},
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "modalities": ["audio"],
    "moderation": {"model": "m"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "store": True,
    "verbosity": "low",
    "web_search_options": {},
}
PLAIN_HONOURED = (
    *("model", "prompt", "max_tokens", "temperature", "top_p", "seed", "n", "stop", "frequency_penalty"),
    *("presence_penalty", "logit_bias", "logprobs", "stream_options"),
)
PLAIN_NO_EFFECT = {"user": "u-1"}
PLAIN_REFUSED = {"echo": True, "best_of": 2, "suffix": "end"}


def test_the_tables_know_every_field_of_the_official_clients() -> None:
    """What openai-python and azure-ai-inference can send is in exactly one table."""
    chat = [*HONOURED, *NO_EFFECT, *REFUSED]
    assert sorted(chat) == sorted(typing.get_type_hints(CompletionCreateParamsBase))
    plain = [*PLAIN_HONOURED, *PLAIN_NO_EFFECT, *PLAIN_REFUSED]
    assert sorted(plain) == sorted(typing.get_type_hints(PlainParamsBase))
    own = {"self", "args", "body", "stream", "model_extras", "kwargs"}
    azure = set(ChatCompletionsClient.complete.__annotations__) - own - {"return"}
    assert azure <= set(chat), azure - set(chat)


@pytest.fixture(scope="module")
def plain(server: Server, model_home: Path) -> Answer:
    """The answer to the plain body, on a server that has a second model."""
    (server.ctx.home / "models" / PHI).symlink_to(model_home / "models" / PHI)
    answer: Answer = server.post("/v1/chat/completions", BODY).json()
    return answer


@pytest.mark.parametrize("field", HONOURED)
def test_fields_that_are_honoured_show_in_the_answer(server: Server, plain: Answer, field: str) -> None:
    """Each makes the difference that it is for."""
    sent, shows = HONOURED[field]
    answer = server.post("/v1/chat/completions", {**BODY, **sent}).json()
    assert shows(answer, plain), answer


@pytest.mark.parametrize("path", ["/v1/chat/completions", f"/openai/deployments/{TINY}/chat/completions?api-version=1"])
@pytest.mark.parametrize("field", NO_EFFECT)
def test_fields_without_effect_change_nothing(server: Server, plain: Answer, path: str, field: str) -> None:
    """The answer is the one without them."""
    answer = server.post(path, {**BODY, field: NO_EFFECT[field]}).json()
    assert answer["choices"] == plain["choices"]


PATHS = ("/v1/chat/completions", f"/openai/deployments/{TINY}/chat/completions", "/models/chat/completions")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("field", REFUSED)
def test_fields_that_are_not_offered_are_refused_by_name(server: Server, path: str, field: str) -> None:
    """A 400 with the field in `param`, on OpenAI's and Azure's routes alike."""
    answer = server.post(path, {**BODY, field: REFUSED[field]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize("field", [*PLAIN_NO_EFFECT, *PLAIN_REFUSED])
def test_plain_completions_take_or_refuse_the_rest(server: Server, field: str) -> None:
    """Ignored or refused by name; what is honoured has tests of its own."""
    sent = {**PLAIN_NO_EFFECT, **PLAIN_REFUSED}[field]
    answer = server.post("/v1/completions", {**PLAIN, field: sent})
    if field in PLAIN_REFUSED:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    else:
        assert text(answer.json()) == text(server.post("/v1/completions", PLAIN).json())


def test_an_answer_has_every_part_of_openais(server: Server, plain: Answer) -> None:
    """Ids, fingerprint, details of usage, refusal null; calls and tier only where there are any."""
    assert plain["id"].startswith("chatcmpl-")
    assert plain["system_fingerprint"].startswith("fp_")
    assert plain["usage"]["prompt_tokens_details"] == {"cached_tokens": 0, "audio_tokens": 0}
    assert set(plain["usage"]["completion_tokens_details"]) == {
        "reasoning_tokens",
        "audio_tokens",
        "accepted_prediction_tokens",
        "rejected_prediction_tokens",
    }
    message = plain["choices"][0]["message"]
    assert (message["role"], message["refusal"]) == ("assistant", None)
    assert "tool_calls" not in message
    assert "service_tier" not in plain
    again = server.post("/v1/completions", PLAIN).json()
    assert again["system_fingerprint"] == plain["system_fingerprint"]


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "colour": 1}}]}, "tools[0].function.colour"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}
                ]
            },
            "tools[0].function.parameters.additionalProperties",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "x",
                        "strict": True,
                        "schema": {**OBJECT, "properties": {"ok": {"type": "array", "uniqueItems": True}}},
                    },
                }
            },
            "response_format.json_schema.schema.properties.ok.uniqueItems",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}}},
            "response_format",
        ),
    ],
)
def test_faults_in_tools_and_formats_name_their_place(server: Server, sent: Answer, param: str) -> None:
    """A 400 whose param is the path of the fault, whether found by OpenAI's rules or by the engine."""
    answer = server.post("/v1/chat/completions", {**BODY, **sent})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = {"role": "assistant", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "tool", "content": "x", "tool_call_id": "c1"}], "messages[0].tool_call_id"),
        ([*QUESTION, CALLED], "messages[1]"),
        ([*QUESTION, CALLED, {"role": "user", "content": "and?"}], "messages[1]"),
        ([*QUESTION, CALLED, {"role": "tool", "content": "x", "tool_call_id": "c2"}], "messages[2].tool_call_id"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0].tool_calls"),
        ([*QUESTION, {"role": "assistant"}], "messages[1].content"),
        ([{"role": "function", "content": "x", "name": "f"}], "messages[0].role"),
    ],
)
def test_calls_and_their_answers_must_belong_together(server: Server, messages: list[Answer], param: str) -> None:
    """Each call has one answer with its id right after it, as OpenAI demands; the 400 names the message."""
    answer = server.post("/v1/chat/completions", {**BODY, "messages": messages})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
