"""The pool with vLLM behind it: real processes from start to kill -9, of the vLLM that tests/vllm_programs.py names."""

import asyncio
import os
import subprocess
import sys
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tests.contract.engine_suite import ADAPTERS, complete, request, tiny_model, torch_engine, write_adapters
from tests.engine_pools import NAME, Bench, run, until
from tests.vllm_programs import ENVIRONMENT, EXTRA, HIDDEN, PROGRAM, vllm_program

from smedje.errors import Unavailable
from smedje.modeling.load import load_decoder
from smedje.modeling.tiny_random import write_tiny_llama
from smedje.modeling.transformer import CausalDecoder
from smedje.serving import client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WHOLE = "checkpoints/whole"


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Object storage with three adapters and other weights of the whole model."""
    objects = tmp_path_factory.mktemp("objects")
    other = tmp_path_factory.mktemp("other")
    write_tiny_llama(other, hidden=HIDDEN, seed=9)
    (objects / WHOLE).mkdir(parents=True)
    (objects / WHOLE / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    return objects


@pytest.fixture(scope="module")
def model(folder: Path, objects: Path) -> CausalDecoder:
    """A tiny model in `folder`, whose adapters are in `objects`."""
    model = tiny_model(folder, hidden=HIDDEN)
    write_adapters(model, objects)
    return model


@pytest.fixture
def bench(model: CausalDecoder, folder: Path, objects: Path, tmp_path: Path) -> Bench:
    """A fresh bench for each test, whose engines are vLLM's."""
    bench = Bench(folder, objects, tmp_path)
    command = (sys.executable, "-m", "smedje.serving.vllm_worker", "--vllm", str(vllm_program(tmp_path)))
    bench.settings = replace(
        bench.settings,
        command=(*command, f"--vllm-options={' '.join(EXTRA)}"),
        start_seconds=300.0,
        grace_seconds=20.0,
        env={**bench.settings.env, **ENVIRONMENT},
    )
    return bench


def children(worker: psutil.Process) -> list[psutil.Process]:
    """vLLM's process and what it started."""
    return worker.children(recursive=True)


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, be it reaped or not."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_pool_serves_through_vllm_and_ends_all_of_it(bench: Bench, model: CausalDecoder, objects: Path) -> None:
    """Base model and adapters answer as our engine answers, and stopping the pool lets what runs come to its end."""
    requests = [replace(request(seed=n), adapter=key) for n, key in enumerate((None, *ADAPTERS))]
    direct = torch_engine(model, objects)
    expected = [complete(direct, asked).tokens for asked in requests]

    async def body() -> None:
        async with bench.pool() as pool:
            assert await asyncio.gather(*(bench.tokens(pool, asked) for asked in requests)) == expected
            stats = await pool.warm(NAME, bench.folder)
            assert (stats.adapters, stats.generated_tokens, stats.running) == (3, 32, 0)
            [worker] = bench.starter.processes()
            family = children(worker)
            assert family
            [socket] = [Path(word) for word in worker.cmdline() if word.endswith(".sock")]
            assert socket.parent.stat().st_mode & 0o777 == 0o700
            chunks = pool.generate(NAME, bench.folder, request(max_tokens=400))
            await anext(chunks)
            closing = asyncio.create_task(pool.close())
            rest = [chunk async for chunk in chunks]
            assert len(rest) == 399
            assert rest[-1].finish is not None
            await closing
        assert all(map(gone, family))
        assert not socket.parent.exists()
        assert str(request().tokens[:5])[1:-1] not in bench.log, "prompts are not logged"

    run(body(), seconds=400)


def test_a_killed_vllm_is_replaced(bench: Bench) -> None:
    """kill -9 of vLLM half-way is Unavailable to its client; the next request has a new server. The same for us."""

    async def body() -> None:
        async with bench.pool() as pool:
            expected = await bench.tokens(pool, request())
            [worker] = bench.starter.processes()
            family = children(worker)
            async with aclosing(pool.generate(NAME, bench.folder, request(max_tokens=None))) as chunks:
                await anext(chunks)
                family[0].kill()
                with pytest.raises(Unavailable) as broken:
                    _ = [chunk async for chunk in chunks]
            assert broken.value.code == client.ENGINE_GONE
            await until(lambda: gone(worker))
            assert await bench.tokens(pool, request()) == expected
            await until(lambda: all(map(gone, family)))
            [second] = bench.starter.processes()
            assert second.pid != worker.pid
            if PROGRAM is None:
                family = children(second)
                second.kill()
                await until(lambda: all(map(gone, family)))

    run(body(), seconds=550)


def test_whole_weights_take_the_models_place(bench: Bench, model: CausalDecoder, objects: Path) -> None:
    """An engine of tuned weights answers with them, and the model folder is as it was."""
    before = sorted(path.name for path in bench.folder.iterdir())
    tuned = load_decoder(bench.folder, weights=objects / WHOLE)
    expected = complete(torch_engine(tuned, objects), request()).tokens
    assert expected != complete(torch_engine(model, objects), request()).tokens

    async def body() -> None:
        async with bench.pool() as pool:
            assert await bench.tokens(pool, request(), weights=WHOLE) == expected
        assert sorted(path.name for path in bench.folder.iterdir()) == before

    run(body(), seconds=400)


def test_a_vllm_that_does_not_start_is_unavailable_and_says_why(bench: Bench) -> None:
    """A wrong option ends the start at once; the log holds vLLM's words."""

    async def body() -> None:
        async with bench.pool(command=(*bench.settings.command[:-1], "--vllm-options=--no-such-option")) as pool:
            with pytest.raises(Unavailable) as failed:
                await pool.warm(NAME, bench.folder)
            assert failed.value.code == "engine_start_failed"
            assert "no-such-option" in bench.log
            assert bench.starter.processes() == []

    run(body(), seconds=200)


def test_the_worker_needs_no_torch() -> None:
    """The process between our protocol and vLLM loads nothing that computes."""
    code = "import sys, smedje.serving.vllm_worker; assert not {'torch', 'numpy', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
