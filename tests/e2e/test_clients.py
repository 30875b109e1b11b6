"""Unmodified clients against a live server: openai (sync, async, streaming, Azure), azure-ai-inference, LangChain, npm.

The npm package is fetched into a temporary folder, only when SMEDJE_TEST_NODE=1 says so (`make clients-node`);
everything else needs no network.
"""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pydantic
import pytest
from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference import models as azure_models
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from openai import AsyncOpenAI, AzureOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import SecretStr
from tests.api_server import Server, server

from smedje.services import deployments

__all__ = ["server"]

MODEL = "smollm2-135m-instruct"
DEPLOYMENT = "front"
VERSION = "2024-10-21"
ASKED = "What is the weather in Paris?"
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": ASKED}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
NODE = Path(__file__).resolve().parents[2] / "examples" / "node"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")


class Place(pydantic.BaseModel):
    """Where the question is about."""

    city: str


@tool
def get_weather(city: str) -> str:
    """The weather of a city now."""
    return f"It rains in {city}, 21 degrees."


@pytest.fixture(scope="module")
def expected(server: Server, model_home: Path) -> str:
    """What the embedded model says, greedily, in 12 tokens; the server has it, and one deployment of it."""
    (server.ctx.home / "models" / MODEL).symlink_to(model_home / "models" / MODEL)
    deployments.create_deployment(server.ctx, server.project, name=DEPLOYMENT, model=MODEL)
    body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 12}
    return str(server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"])


def test_openai_sync(server: Server, expected: str) -> None:
    """Plain answer, parsed answer, and a call of a tool with its answer."""
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
        plain = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=12)
        assert plain.choices[0].message.content == expected
        parsed = client.chat.completions.parse(
            model=MODEL, messages=QUESTION, temperature=0, max_tokens=60, response_format=Place
        )
        assert parsed.choices[0].message.parsed == Place(city="Paris")
        called = client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            tools=[WEATHER],
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
        )
        (call,) = called.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_openai_streaming(server: Server, expected: str) -> None:
    """Chunks, and the client's own accumulator with its events."""
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
        chunks = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, max_tokens=12, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        with client.chat.completions.stream(
            model=MODEL, messages=QUESTION, temperature=0, max_tokens=60, response_format=Place
        ) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        assert final.choices[0].message.parsed == Place(city="Paris")
        assert {"content.delta", "content.done"} <= set(kinds)


def test_openai_async(server: Server, expected: str) -> None:
    """Several requests of one client at once."""

    async def ask() -> list[str | None]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:

            async def one() -> str | None:
                answer = await client.chat.completions.create(
                    model=MODEL, messages=QUESTION, temperature=0, max_tokens=12
                )
                return answer.choices[0].message.content

            return await asyncio.gather(*(one() for _ in range(4)))

    assert asyncio.run(ask()) == [expected] * 4


def test_azure_openai(server: Server, expected: str) -> None:
    """The classic path with api-version and the api-key header, plain and streamed."""
    with AzureOpenAI(azure_endpoint=server.url, api_key=server.key, api_version=VERSION) as client:
        whole = client.chat.completions.create(model=DEPLOYMENT, messages=QUESTION, temperature=0, max_tokens=12)
        chunks = client.chat.completions.create(
            model=DEPLOYMENT, messages=QUESTION, temperature=0, max_tokens=12, stream=True
        )
        assert whole.choices[0].message.content == expected
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected


@pytest.mark.parametrize("path", ["", "/models", f"/openai/deployments/{DEPLOYMENT}"])
def test_azure_ai_inference(server: Server, expected: str, path: str) -> None:
    """ChatCompletionsClient on every kind of address: plain, streamed, JSON, a tool, model info, extra parameters."""
    question = [azure_models.UserMessage(ASKED)]
    with ChatCompletionsClient(server.url + path, AzureKeyCredential(server.key)) as client:
        options: Any = {"messages": question, "temperature": 0.0, "max_tokens": 12}
        assert client.complete(**options).choices[0].message.content == expected
        updates = client.complete(**options, stream=True)
        assert "".join(one.choices[0].delta.content or "" for one in updates if one.choices) == expected
        form = azure_models.JsonSchemaFormat(name="place", schema=CITY, strict=True)
        said = client.complete(messages=question, temperature=0.0, max_tokens=60, response_format=form)
        assert json.loads(said.choices[0].message.content) == {"city": "Paris"}
        function = azure_models.FunctionDefinition(name="get_weather", parameters=CITY)
        definition = azure_models.ChatCompletionsToolDefinition(function=function)
        named = azure_models.ChatCompletionsNamedToolChoice(
            function=azure_models.ChatCompletionsNamedToolChoiceFunction(name="get_weather")
        )
        called = client.complete(messages=question, temperature=0.0, tools=[definition], tool_choice=named).choices[0]
        assert called.finish_reason == "tool_calls"
        (call,) = called.message.tool_calls or []
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        replied = [
            *question,
            azure_models.AssistantMessage(tool_calls=[call]),
            azure_models.ToolMessage("rain, 21 degrees", tool_call_id=call.id),
        ]
        assert client.complete(messages=replied, tools=[definition], temperature=0.0, max_tokens=30).choices
        assert client.get_model_info().model_name == MODEL
        assert len(client.complete(**options, model_extras={"n": 2}).choices) == 2
        with pytest.raises(HttpResponseError, match="safe_mode"):
            client.complete(**options, model_extras={"safe_mode": True})


def test_langchain(server: Server, expected: str) -> None:
    """ChatOpenAI: invoke, stream, bind_tools with the round trip, with_structured_output in its three ways."""
    chat = ChatOpenAI(
        model=MODEL, base_url=f"{server.url}/v1", api_key=SecretStr(server.key), temperature=0, max_completion_tokens=12
    )
    assert chat.invoke(ASKED).content == expected
    assert "".join(str(piece.content) for piece in chat.stream(ASKED)) == expected
    roomy = chat.model_copy(update={"max_tokens": 60})
    called = roomy.bind_tools([get_weather], tool_choice="get_weather").invoke(ASKED)
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    answer = get_weather.invoke(call)
    assert isinstance(answer, ToolMessage)
    reply = roomy.bind_tools([get_weather], tool_choice="none").invoke([HumanMessage(ASKED), called, answer])
    assert "21" in str(reply.content)
    for method in ("json_schema", "function_calling"):
        found = roomy.with_structured_output(Place, method=method).invoke(ASKED)
        assert found == Place(city="Paris"), method
    said = 'Repeat this JSON: {"city": "Paris"}'
    assert isinstance(roomy.with_structured_output(None, method="json_mode").invoke(said), dict)


def test_langchain_azure(server: Server, expected: str) -> None:
    """AzureChatOpenAI through the deployment's own path."""
    chat = AzureChatOpenAI(
        azure_endpoint=server.url,
        api_key=SecretStr(server.key),
        api_version=VERSION,
        azure_deployment=DEPLOYMENT,
        temperature=0,
        max_tokens=12,
    )
    assert chat.invoke(ASKED).content == expected


@pytest.mark.skipif(os.environ.get("SMEDJE_TEST_NODE") != "1", reason="`make clients-node` fetches the npm package")
def test_openai_npm(server: Server, expected: str, tmp_path: Path) -> None:
    """The npm package: plain, streamed, JSON of a schema, a call of a tool and its answer, an error with its code."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    for name in ("package.json", "chat.mjs"):
        shutil.copy(NODE / name, tmp_path / name)
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    fetched = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    if fetched.returncode:
        pytest.skip(f"the npm registry does not answer: {fetched.stderr.strip()[:200]}")
    env = {**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": server.key, "MODEL": MODEL}
    ran = subprocess.run(["node", "chat.mjs"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["plain"] == said["streamed"] == expected
    assert said["parsed"] == {"city": "Paris"}
    assert said["call"] == {"name": "get_weather", "arguments": {"city": "Paris"}, "finish_reason": "tool_calls"}
    assert said["reply"]
    assert said["error"] == {"status": 404, "code": "model_not_found"}
