"""The official openai client, streaming and asynchronous, against a live server."""

import asyncio
import json
import socket

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from tests.api_server import TINY, Server, chat_lines
from tests.raw_streams import gauges

from smedje.store import usage as usage_rows

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


def completions_counted(server: Server) -> list[int]:
    """Completion tokens metered so far, summed by model."""
    with server.ctx.database.transaction() as tx:
        return [total.completion_tokens for total in usage_rows.sum_usage(tx, server.project.id, 0, 2**40)]


def test_a_stream_says_what_the_plain_answer_says(server: Server) -> None:
    """The same seed, streamed: first the role, then the same text in pieces, then the finish reason, then the usage."""
    client = server.client()
    plain = client.chat.completions.create(model=TINY, messages=QUESTION, max_tokens=20, seed=9)
    chunks = list(
        client.chat.completions.create(
            model=TINY, messages=QUESTION, max_tokens=20, seed=9, stream=True, stream_options={"include_usage": True}
        )
    )
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    first, *middle, last = chunks
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content == ""
    assert "".join(c.choices[0].delta.content or "" for c in middle) == plain.choices[0].message.content
    assert [c.choices[0].finish_reason for c in middle] == [None] * (len(middle) - 1) + ["length"]
    assert last.choices == []
    assert last.usage is not None
    assert plain.usage is not None
    assert last.usage.completion_tokens == plain.usage.completion_tokens
    assert last.usage.total_tokens == plain.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_choices_of_a_stream_are_told_apart(server: Server) -> None:
    """With n=2 each choice begins, grows and ends under its own index, and equals the plain answer's choice."""
    client = server.client()
    plain = client.chat.completions.create(model=TINY, messages=QUESTION, max_tokens=10, seed=4, n=2)
    text, ended = {0: "", 1: ""}, []
    for chunk in client.chat.completions.create(model=TINY, messages=QUESTION, max_tokens=10, seed=4, n=2, stream=True):
        for choice in chunk.choices:
            text[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ended.append(choice.index)
    assert [text[0], text[1]] == [choice.message.content for choice in plain.choices]
    assert sorted(ended) == [0, 1]


def test_a_streams_first_error_is_a_plain_answer(server: Server) -> None:
    """What is wrong with a request is told by status before any stream begins."""
    with pytest.raises(openai.NotFoundError):
        server.client().chat.completions.create(model="nobody", messages=QUESTION, stream=True)
    with pytest.raises(openai.BadRequestError):
        server.client().chat.completions.create(
            model=TINY, messages=[{"role": "user", "content": "x" * 600}], stream=True
        )


def wait_for_more(server: Server, before: int) -> int:
    """Completion tokens that were metered since `before`, once there are any."""

    async def counted() -> int:
        while (found := sum(completions_counted(server))) == before:
            await asyncio.sleep(0.02)
        return found - before

    return asyncio.run(asyncio.wait_for(counted(), 60))


def test_a_stream_that_is_closed_early_is_metered(server: Server) -> None:
    """A client that leaves after a few chunks is metered for what was sent."""
    before = sum(completions_counted(server))
    stream = server.client().chat.completions.create(model=TINY, messages=QUESTION, max_tokens=400, seed=1, stream=True)
    with stream:
        for _, _ in zip(range(5), stream, strict=False):
            pass
    assert 0 < wait_for_more(server, before) <= 400


def test_a_plain_request_whose_client_hangs_up_is_not_generated_to_its_end(server: Server) -> None:
    """When the connection closes, generation stops: fewer tokens are metered than were asked for."""
    server.client().chat.completions.create(model=TINY, messages=QUESTION, max_tokens=1)
    before = sum(completions_counted(server))
    body = json.dumps({"model": TINY, "messages": QUESTION, "max_tokens": 460, "n": 8, "seed": 3})
    host, port = server.url.removeprefix("http://").split(":")
    [generated] = gauges(server.get("/metrics").text, "generated_tokens")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        while gauges(server.get("/metrics").text, "generated_tokens") < [generated + 40]:
            pass  # it has begun to answer
    assert 0 < wait_for_more(server, before) < 8 * 460


def test_the_asynchronous_client_works_side_by_side(server: Server) -> None:
    """Several requests of one asynchronous client, plain and streamed at once, each get their own answer."""

    async def ask() -> tuple[list[str | None], str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:

            async def plain(seed: int) -> str | None:
                answer = await client.chat.completions.create(model=TINY, messages=QUESTION, max_tokens=8, seed=seed)
                return answer.choices[0].message.content

            async def streamed(seed: int) -> str:
                stream = await client.chat.completions.create(
                    model=TINY, messages=QUESTION, max_tokens=8, seed=seed, stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

            *answers, text = await asyncio.gather(plain(1), plain(2), plain(1), streamed(2))
            file = await client.files.create(file=("a.jsonl", chat_lines(10)), purpose="fine-tune")
            assert (await client.files.retrieve(file.id)).status == "processed"
            return answers, text

    answers, text = asyncio.run(ask())
    assert answers[0] == answers[2] != answers[1]
    assert text == answers[1]


def test_usage_is_metered(server: Server) -> None:
    """A plain answer adds its completion tokens to the project's usage, under the model that answered."""
    before = sum(completions_counted(server))
    server.client().chat.completions.create(model=TINY, messages=QUESTION, max_tokens=7, temperature=0)
    assert sum(completions_counted(server)) == before + 7
