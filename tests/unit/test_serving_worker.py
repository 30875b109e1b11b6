"""Engine processes and the pool that owns them: real processes, a tiny model, sockets between them."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine_suite import ADAPTERS, complete, request, torch_engine
from tests.engine_pools import NAME, Bench, run, until

from smedje.errors import Unavailable
from smedje.modeling.transformer import CausalDecoder
from smedje.serving import client

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(model: CausalDecoder, folder: Path, objects: Path, tmp_path: Path) -> Bench:
    """A fresh bench for each test."""
    return Bench(folder, objects, tmp_path)


def test_two_requests_at_once_start_one_engine(
    bench: Bench, model: CausalDecoder, objects: Path, tmp_path: Path
) -> None:
    """The first requests start a single process, which serves base model and adapters; closing the pool ends it."""
    requests = [replace(request(seed=n), adapter=key) for n, key in enumerate((None, *ADAPTERS))]
    direct = torch_engine(model, objects)
    expected = [complete(direct, asked).tokens for asked in requests]

    async def body() -> None:
        async with bench.pool() as pool:
            assert await asyncio.gather(*(bench.tokens(pool, asked) for asked in requests)) == expected
            stats = await pool.warm(NAME, bench.folder)
            assert (stats.adapters, stats.generated_tokens) == (3, 32)
            [process] = bench.starter.processes()
            [socket] = [Path(word) for word in process.cmdline() if word.endswith(".sock")]
            assert socket.stat().st_mode & 0o777 == 0o600
            assert socket.parent.stat().st_mode & 0o777 == 0o700
            assert len(os.fsencode(socket)) < 100
            [state] = pool.states()
            assert (state.base_model, state.running, state.requests) == (NAME, True, 0)
        assert bench.starter.processes() == []
        assert not socket.parent.exists()

    run(body())


def test_a_killed_engine_is_replaced(bench: Bench) -> None:
    """kill -9 half-way through a completion is Unavailable to its client, and the next request has a new engine."""

    async def body() -> None:
        async with bench.pool() as pool:
            expected = await bench.tokens(pool, request())
            [first] = bench.starter.processes()
            async with aclosing(pool.generate(NAME, bench.folder, request(max_tokens=None))) as chunks:
                await anext(chunks)
                first.kill()
                with pytest.raises(Unavailable) as gone:
                    _ = [chunk async for chunk in chunks]
            assert gone.value.code == client.ENGINE_GONE
            assert await bench.tokens(pool, request()) == expected
            [second] = bench.starter.processes()
            second.kill()
            assert await bench.tokens(pool, request()) == expected, "one that died between requests is not noticed"
            assert len(bench.starter.handles) == 3

    run(body())


def test_an_idle_engine_is_stopped_and_wakes_again(bench: Bench) -> None:
    """Without requests the process ends; a request in between keeps it; the next one starts another."""

    async def body() -> None:
        async with bench.pool(idle_seconds=0.2) as pool:
            async with aclosing(pool.generate(NAME, bench.folder, request(max_tokens=None))) as chunks:
                async for _ in chunks:
                    # Slower than the idle time as a whole: an engine in use is never idle.
                    await asyncio.sleep(0.001)
            assert len(bench.starter.processes()) == 1
            await until(lambda: not bench.starter.processes())
            assert [state.running for state in pool.states()] == [False]
            await bench.tokens(pool, request())
            assert len(bench.starter.handles) == 2

    run(body())


def test_an_engine_that_cannot_start_is_unavailable(bench: Bench, tmp_path: Path) -> None:
    """A broken model folder, or a start that takes too long, is an error with a name, and leaves no process."""

    async def body() -> None:
        async with bench.pool() as pool:
            with pytest.raises(Unavailable, match=r"engine-nothing\.log") as failed:
                await pool.warm("nothing", tmp_path / "nothing")
            assert failed.value.code == "engine_start_failed"
            assert "config.json is missing" in (bench.settings.logs / "engine-nothing.log").read_text()
        async with bench.pool(start_seconds=0.1) as pool:
            with pytest.raises(Unavailable) as late:
                await pool.warm(NAME, bench.folder)
            assert late.value.code == "engine_start_timeout"
            await until(lambda: not bench.starter.processes())

    run(body())


def test_a_caller_that_gives_up_leaves_the_start_to_the_next(bench: Bench) -> None:
    """A request cancelled while the engine starts does not start it twice."""

    async def body() -> None:
        async with bench.pool() as pool:
            impatient = asyncio.create_task(bench.tokens(pool, request()))
            await until(lambda: bool(bench.starter.handles))
            impatient.cancel()
            await asyncio.gather(impatient, return_exceptions=True)
            assert len(await bench.tokens(pool, request())) == 8
            assert len(bench.starter.handles) == 1

    run(body())


def test_a_closed_pool_starts_nothing(bench: Bench) -> None:
    """After close every request is Unavailable."""

    async def body() -> None:
        async with bench.pool() as pool:
            pass
        with pytest.raises(Unavailable):
            await pool.warm(NAME, bench.folder)
        assert bench.starter.handles == []

    run(body())


def test_the_api_processs_side_needs_no_torch() -> None:
    """Client and pool import nothing that computes."""
    code = "import sys, smedje.serving.supervisor; assert not {'torch', 'numpy', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def worker(bench: Bench, socket: Path, *, parent: int) -> list[str]:
    """The command line of an engine process."""
    options = ["--model-folder", bench.folder, "--socket", socket, "--objects", bench.settings.objects_url]
    options += ["--cache", bench.settings.cache, "--threads", 1, "--parent", parent]
    return [sys.executable, "-m", "smedje.serving.worker", *map(str, options)]


def test_sigterm_drains(bench: Bench, tmp_path: Path) -> None:
    """The running completion comes to its end, and the process ends with success."""
    socket = tmp_path / "s"
    process = subprocess.Popen(worker(bench, socket, parent=os.getpid()))

    async def body() -> None:
        await until(lambda: socket.exists() or process.poll() is not None)
        chunks = client.generate(socket, request(max_tokens=200))
        await anext(chunks)
        process.send_signal(signal.SIGTERM)
        rest = [chunk async for chunk in chunks]
        assert len(rest) == 199
        assert rest[-1].finish is not None
        assert await asyncio.to_thread(process.wait, 30) == 0
        assert not socket.exists()

    try:
        run(body())
    finally:
        process.kill()
        process.wait()


def test_the_end_of_the_parent_ends_the_worker(bench: Bench, tmp_path: Path) -> None:
    """A worker whose parent was killed ends by itself and removes its socket and the folder that it was in."""
    folder = tmp_path / "private"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"]) as parent:
        process = subprocess.Popen(worker(bench, folder / "s", parent=parent.pid))
        try:
            run(until(lambda: (folder / "s").exists() or process.poll() is not None))
            parent.kill()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
    assert not folder.exists()
