"""The socket side of an engine, with our engine on a tiny model behind it, in one process."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.engine_suite import (
    ADAPTERS,
    CONTEXT,
    Completion,
    complete,
    request,
    torch_engine,
)

from smedje.errors import InternalError, InvalidRequest, NotFound, Unavailable
from smedje.modeling.transformer import CausalDecoder
from smedje.objects.store import open_objects
from smedje.serving import client
from smedje.serving.adapters import AdapterCache
from smedje.serving.engine import Delivery, Engine, GenerationRequest
from smedje.serving.server import EngineServer
from smedje.serving.torch_engine import EngineLimits, TorchEngine


@pytest.fixture
def engine(model: CausalDecoder, objects: Path) -> TorchEngine:
    """A fresh one for each test."""
    return torch_engine(model, objects)


@asynccontextmanager
async def serving(engine: Engine, socket: Path) -> AsyncIterator[asyncio.Event]:
    """Serve while the block runs; hands out the event that starts the draining."""
    drain = asyncio.Event()
    server = asyncio.create_task(EngineServer(engine).run(socket, drain=drain))
    await until(socket.exists, server)
    try:
        yield drain
    finally:
        drain.set()
        await server


async def until(fact: Callable[[], bool], task: asyncio.Task[None] | None = None) -> None:
    """Let the event loop run until `fact` is true or the task has failed."""
    async with asyncio.timeout(30):
        while not fact() and (task is None or not task.done()):
            await asyncio.sleep(0.001)


async def collected(socket: Path, asked: GenerationRequest) -> Completion:
    """All chunks of one request."""
    done = Completion()
    async for chunk in client.generate(socket, asked):
        done = Completion(
            tokens=done.tokens + chunk.tokens, finish=chunk.finish, stop_token=chunk.stop_token, usage=chunk.usage
        )
    return done


def run(engine: Engine, tmp_path: Path, body: Callable[[Path], Coroutine[Any, Any, None]]) -> None:
    """Run `body` with the socket of a server over the engine."""

    async def with_server() -> None:
        async with serving(engine, tmp_path / "s"):
            await body(tmp_path / "s")

    asyncio.run(with_server())


def test_completions_come_over_the_socket(
    engine: TorchEngine, model: CausalDecoder, objects: Path, tmp_path: Path
) -> None:
    """Several clients at once, with and without adapters, get what the engine says when asked directly."""
    requests = [replace(request(5 + n, seed=n, max_tokens=4 + n), adapter=(None, *ADAPTERS)[n % 4]) for n in range(6)]
    direct = torch_engine(model, objects)
    expected = [complete(direct, asked) for asked in requests]

    async def body(socket: Path) -> None:
        assert socket.stat().st_mode & 0o777 == 0o600
        assert await asyncio.gather(*(collected(socket, asked) for asked in requests)) == expected

    run(engine, tmp_path, body)


def test_hanging_up_frees_the_sequence(engine: TorchEngine, tmp_path: Path) -> None:
    """A client that closes its iterator half-way leaves nothing running, and others are served."""

    async def body(socket: Path) -> None:
        async with aclosing(client.generate(socket, request(max_tokens=None))) as chunks:
            async for _ in chunks:
                break
        await until(lambda: engine.stats().running + engine.stats().waiting == 0)
        stats = await client.ping(socket)
        assert (stats.running, stats.waiting, stats.cached_tokens) == (0, 0, 0)
        assert stats.generated_tokens < 400
        assert len((await collected(socket, request(max_tokens=4))).tokens) == 4

    run(engine, tmp_path, body)


def test_refusals_come_back_as_they_were_raised(engine: TorchEngine, tmp_path: Path) -> None:
    """An invalid request and an unknown adapter raise the engine's own errors in the client."""

    async def body(socket: Path) -> None:
        with pytest.raises(InvalidRequest) as refusal:
            await collected(socket, request(600))
        assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "messages")
        with pytest.raises(NotFound, match="adapters/none"):
            await collected(socket, replace(request(), adapter="adapters/none"))
        with pytest.raises(InternalError):
            await collected(socket, replace(request(), adapter="../escape"))

    run(engine, tmp_path, body)


@pytest.mark.parametrize("line", [b"nonsense\n", b'{"op":"generate"}\n', b"no newline"])
def test_a_broken_line_is_answered_with_an_error(engine: TorchEngine, tmp_path: Path, line: bytes) -> None:
    """The error stands on one line and the connection is closed."""

    async def body(socket: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(socket)
        writer.write(line)
        writer.write_eof()
        answer = json.loads(await reader.read())
        assert answer["error"]["type"] == "InvalidRequest"
        writer.close()
        await writer.wait_closed()

    run(engine, tmp_path, body)


def test_draining_finishes_what_has_begun(engine: TorchEngine, tmp_path: Path) -> None:
    """After the drain no connection is taken, and the running completion comes to its end."""

    async def body() -> None:
        socket = tmp_path / "s"
        async with serving(engine, socket) as drain:
            chunks = client.generate(socket, request(max_tokens=100))
            await anext(chunks)
            drain.set()
            await until(lambda: not socket.exists())
            with pytest.raises(Unavailable) as gone:
                await client.ping(socket)
            assert gone.value.code == client.ENGINE_GONE
            rest = [chunk async for chunk in chunks]
            assert len(rest) == 99
            assert rest[-1].finish is not None

    asyncio.run(body())


class FailingEngine(TorchEngine):
    """Our engine, but for a step that breaks."""

    def step(self) -> list[Delivery]:
        raise RuntimeError("no memory left")


def test_a_failing_step_ends_the_server(model: CausalDecoder, objects: Path, tmp_path: Path) -> None:
    """An engine that broke serves nobody: the server raises, and its clients see the engine go away."""
    adapters = AdapterCache(model, open_objects(objects.as_uri()), folder=tmp_path, capacity=1)
    failing = FailingEngine(model, adapters, EngineLimits(context=CONTEXT, token_capacity=CONTEXT))

    async def body() -> None:
        socket = tmp_path / "s"
        server = asyncio.create_task(EngineServer(failing).run(socket, drain=asyncio.Event()))
        await until(socket.exists, server)
        waiting = asyncio.create_task(collected(socket, request()))
        with pytest.raises(RuntimeError, match="no memory left"):
            await server
        assert not socket.exists()
        waiting.cancel()

    asyncio.run(body())
