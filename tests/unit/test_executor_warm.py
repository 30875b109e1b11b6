"""Processes that wait with a base model in memory: workers made from them are as exact and as alone as fresh ones."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from tests.contract.executor_suite import within
from tests.training_runs import Bench, bench

from smedje.domain.runs import Outcome
from smedje.executors.base import worker_environment
from smedje.executors.local import LocalExecutor
from smedje.executors.warm import WarmWorkers
from smedje.objects.run_folder import RunFolder
from smedje.training.resident import base_decoder, base_tokenizer, load_resident
from smedje.training.spec import LoraSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are kept waiting on Linux alone")
Make = Callable[..., WarmWorkers]


@pytest.fixture
def place(tmp_path: Path) -> Bench:
    """A run of eight steps with dropout on two threads."""
    lora = LoraSpec(rank=4, alpha=8.0, dropout=0.1)
    return bench(tmp_path, rows=16).with_spec(n_epochs=5, max_steps=8, lora=lora, threads=2)


@pytest.fixture
def warm(place: Bench) -> Iterator[Make]:
    """Makes what a server has; its process is ended after the test."""
    made: list[WarmWorkers] = []

    def make(idle_seconds: float = 60.0) -> WarmWorkers:
        made.append(
            WarmWorkers(
                command=(sys.executable, "-m", "smedje.training.warm", *storage(place)),
                env=worker_environment(os.environ, objects_url="file:///"),
                log=place.root / "warm.log",
                idle_seconds=idle_seconds,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def storage(place: Bench) -> tuple[str, ...]:
    return ("--objects", (place.root / "objects").as_uri(), "--cache", str(place.root / "cache"))


def ready(one: WarmWorkers, place: Bench) -> None:
    one.keep(place.spec.base_folder)
    assert within(60, lambda: not one.reading)
    assert one._current() is not None, (place.root / "warm.log").read_text()


def order(one: WarmWorkers, place: Bench, run: str) -> RunFolder:
    """Order a run from the waiting process and wait for its result."""
    folder = place.folder(run)
    handle = one.start(run, place.spec.base_folder, log=place.root / f"{run}.log")
    assert handle is not None
    assert handle["pid"]
    assert within(60, lambda: folder.read_result() is not None), (place.root / f"{run}.log").read_text()
    return folder


def adapter(place: Bench, folder: RunFolder) -> bytes:
    result = folder.read_result()
    assert result is not None
    assert result.outcome is Outcome.SUCCEEDED, result.error_message
    return place.objects.get(f"{folder.checkpoint_prefix(8)}/adapter_model.safetensors")


def test_the_same_run_cold_and_warm_gives_the_same_bytes(place: Bench, warm: Make) -> None:
    """A fresh process, the first and the second worker of one waiting process end with one adapter, byte for byte."""
    cold = place.folder("run-cold")
    command = [sys.executable, "-m", "smedje.training.worker", *storage(place), "--run", "run-cold"]
    subprocess.run(command, check=True, timeout=120, env=worker_environment(os.environ, objects_url="file:///"))
    one = warm()
    ready(one, place)
    found = [order(one, place, name) for name in ("run-first", "run-second")]
    assert [adapter(place, folder) for folder in found] == [adapter(place, cold)] * 2
    assert "run-first.log" in os.listdir(place.root)


def test_a_killed_worker_harms_only_its_run(place: Bench, warm: Make) -> None:
    """kill -9 of one worker: the next one from the same waiting process is whole; no zombie is left."""
    one = warm()
    ready(one, place)
    place.with_spec(max_steps=4000, n_epochs=9999).folder("run-a")
    handle = one.start("run-a", place.spec.base_folder, log=place.root / "a.log")
    assert handle
    executor = LocalExecutor()
    assert executor.alive(handle)
    os.kill(handle["pid"], signal.SIGKILL)
    assert within(20, lambda: not executor.alive(handle))
    assert within(20, lambda: not psutil.pid_exists(handle["pid"]))
    adapter(place, order(one, place, "run-b"))


def test_workers_outlive_the_waiting_process(place: Bench, warm: Make) -> None:
    """kill -9 of the waiting process: its worker goes on, and the next order says that nobody waits."""
    one = warm()
    ready(one, place)
    long = place.with_spec(max_steps=4000, n_epochs=9999)
    handle = one.start(long.folder("run-a").run_id, place.spec.base_folder, log=place.root / "a.log")
    current = one._current()
    assert handle
    assert current is not None
    current.process.kill()
    current.process.wait(20)
    executor = LocalExecutor()
    assert executor.alive(handle)
    assert one.start("run-b", place.spec.base_folder, log=place.root / "b.log") is None
    executor.stop(handle, grace_seconds=0)
    assert not executor.alive(handle)


def test_the_waiting_process_ends_with_its_server(place: Bench, warm: Make) -> None:
    """When the other end of its socket goes, as with a killed server, the process ends by itself."""
    one = warm()
    ready(one, place)
    current = one._current()
    assert current is not None
    current.orders.close()
    assert current.process.wait(20) == 0


def test_memory_is_given_back(place: Bench, warm: Make) -> None:
    """Idle for its time, wanted with another base model, or set to none: no process waits."""
    one = warm(idle_seconds=0.2)
    ready(one, place)
    current = one._current()
    assert current is not None
    one.tend(busy=True)
    assert one._current() is current

    def ended() -> bool:
        one.tend(busy=False)
        return one._current() is None

    assert within(20, ended)
    assert within(20, lambda: current.process.poll() is not None)
    other = warm()
    ready(other, place)
    assert other.start("run-x", "/another/model", log=place.root / "x.log") is None
    assert other._current() is None
    never = warm(idle_seconds=0)
    never.keep(place.spec.base_folder)
    assert never._current() is None


def test_a_changed_base_model_is_read_again(place: Bench) -> None:
    """What is in memory serves only the very files it was read from, on their day and in their number format."""
    folder = Path(place.spec.base_folder)
    resident = load_resident(folder)
    assert resident is not None

    def decoder(of: Path = folder, dtype: torch.dtype = torch.float32) -> object:
        return base_decoder(resident, of, dtype=dtype, device="cpu", context_length=100)

    assert decoder() is resident.decoder
    assert base_tokenizer(resident, folder, today=resident.today) is resident.tokenizer
    assert decoder(dtype=torch.float64) is not resident.decoder
    assert base_tokenizer(resident, folder, today=resident.today.replace(year=1999)) is not resident.tokenizer
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    os.utime(weights, ns=(time.time_ns(), time.time_ns() + 5_000_000_000))
    assert decoder() is not resident.decoder
    assert base_tokenizer(resident, folder, today=resident.today) is not resident.tokenizer
