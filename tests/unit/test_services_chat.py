"""The chat service over a real engine: cancelling, warming, tokenizers, metering."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from tests.api_server import TINY, install_tiny_model
from tests.store_rows import add_project

from smedje.domain.conversations import ChatRequest, FinishReason, Sampling
from smedje.domain.projects import Principal, Role
from smedje.errors import NotFound, Unavailable
from smedje.executors.base import worker_environment
from smedje.executors.local import LocalExecutor
from smedje.objects.store import open_objects
from smedje.services.chat import QUEUED_DELTAS, Chat
from smedje.services.context import Context
from smedje.serving.supervisor import EnginePool, EngineSettings
from smedje.store import usage as usage_rows
from smedje.store.database import Database


@pytest.fixture
def ctx(sqlite_database: Database, tmp_path: Path) -> Context:
    """A context with the tiny base model installed."""
    install_tiny_model(tmp_path)
    return Context(database=sqlite_database, objects=open_objects((tmp_path / "objects").as_uri()), home=tmp_path)


@asynccontextmanager
async def chatting(ctx: Context) -> AsyncIterator[tuple[Chat, EnginePool, Principal]]:
    """A chat service with its own engine pool, and a caller."""
    with ctx.database.transaction() as tx:
        caller = Principal(key_id="key_1", role=Role.OWNER, project=add_project(tx))
    env = worker_environment(os.environ, objects_url=ctx.objects.url)
    settings = EngineSettings(
        objects_url=ctx.objects.url, cache=ctx.home / "cache", logs=ctx.home / "logs", threads=1, env=env
    )
    pool = EnginePool(LocalExecutor(), settings)
    chat = Chat(ctx, pool)
    try:
        yield chat, pool, caller
    finally:
        await chat.close()
        await pool.close()


def ask(**changes: object) -> ChatRequest:
    """A request of one message."""
    facts: dict[str, object] = {
        "model": TINY,
        "messages": ({"role": "user", "content": "hi"},),
        "sampling": Sampling(seed=7),
        "max_tokens": 20,
    }
    return ChatRequest(**{**facts, **changes})  # type: ignore[arg-type]  # each test names real fields


def metered(ctx: Context) -> list[tuple[str, int, int]]:
    """Model, records and completion tokens of all inference so far."""
    with ctx.database.transaction() as tx:
        totals = usage_rows.sum_usage(tx, "proj_default", 0, 2**40)
    return [(total.model, total.records, total.completion_tokens) for total in totals]


def test_closing_a_stream_ends_its_generation(ctx: Context) -> None:
    """After a few deltas of a long answer the reader leaves: no more than what was waiting for it was generated, the
    engine has no request left, and the tokens so far are metered once."""

    async def run() -> None:
        async with chatting(ctx) as (chat, pool, caller):
            stream = await chat.open(caller, ask(max_tokens=480))
            async with aclosing(stream.deltas) as deltas:
                for _ in range(3):
                    await anext(deltas)
            assert [state.requests for state in pool.states()] == [0]
            tokens = stream.usage.completion_tokens
            # A delta may stand for several tokens that had no text of their own yet.
            assert 0 < tokens <= 8 * (QUEUED_DELTAS + 5)
            assert metered(ctx) == [(TINY, 1, tokens)]

    asyncio.run(run())


def test_a_whole_answer_is_the_sum_of_its_deltas(ctx: Context) -> None:
    """Collecting gives the text, the finish reason and the usage that streaming gives."""

    async def run() -> None:
        async with chatting(ctx) as (chat, _, caller):
            answer = await (await chat.open(caller, ask(n=2))).collect()
            stream = await chat.open(caller, ask(n=2))
            text = {0: "", 1: ""}
            async for delta in stream.deltas:
                text[delta.index] += delta.text
            assert [choice.text for choice in answer.choices] == [text[0], text[1]]
            assert {choice.finish for choice in answer.choices} <= {FinishReason.LENGTH, FinishReason.STOP}
            assert answer.usage == stream.usage

    asyncio.run(run())


def test_what_is_wrong_is_raised_before_the_stream_begins(ctx: Context) -> None:
    """An unknown model, and an engine that cannot start, are errors of `open`; nothing is metered."""

    async def run() -> None:
        async with chatting(ctx) as (chat, _, caller):
            with pytest.raises(NotFound):
                await chat.open(caller, ask(model="nobody"))
            (ctx.home / "models" / TINY / "model.safetensors").write_bytes(b"no tensors")
            with pytest.raises(Unavailable) as broken:
                await chat.open(caller, ask())
            assert broken.value.code == "engine_start_failed"
            assert metered(ctx) == []

    asyncio.run(run())


def test_a_warmed_engine_is_there_for_the_first_request(ctx: Context) -> None:
    """Warming starts the engine in the background; a model that cannot be warmed disturbs nobody."""

    async def run() -> None:
        async with chatting(ctx) as (chat, pool, caller):
            chat.warm_soon(TINY)
            chat.warm_soon("not-installed")
            while not any(state.running for state in pool.states()):
                await asyncio.sleep(0.02)
            assert (await (await chat.open(caller, ask(max_tokens=1))).collect()).usage.completion_tokens == 1

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_model_that_is_pulled_again_is_read_again(ctx: Context) -> None:
    """The tokenizer is kept between requests, and read anew when the model's manifest has changed."""

    async def run() -> None:
        async with chatting(ctx) as (chat, _, _):
            folder = ctx.home / "models" / TINY
            first = chat.tokenizer(folder)
            assert chat.tokenizer(folder) is first
            manifest = folder / "smedje.json"
            os.utime(manifest, ns=(1, manifest.stat().st_mtime_ns + 1))
            assert chat.tokenizer(folder) is not first

    asyncio.run(run())
