"""The training worker as a process: killed at random, started again, and in the end the very same adapter."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.training_runs import Bench, bench

from smedje.domain.runs import Control, Outcome
from smedje.objects.run_folder import RunFolder
from smedje.training.checkpoint import saved_steps
from smedje.training.spec import LoraSpec, OptimizerSpec

STEPS = 40


@pytest.fixture
def place(tmp_path: Path) -> Bench:
    """A run of forty steps with dropout that saves its state after every step."""
    lora = LoraSpec(rank=4, alpha=8.0, dropout=0.1)
    return bench(tmp_path, rows=40).with_spec(n_epochs=5, max_steps=STEPS, lora=lora, state_seconds=0.0)


def start(place: Bench, folder: RunFolder) -> subprocess.Popen[bytes]:
    objects = (place.root / "objects").as_uri()
    command = [sys.executable, "-m", "smedje.training.worker", "--objects", objects, "--run", folder.run_id]
    command += ["--cache", str(place.root / "cache")]
    temporary = place.root / "tmp"
    temporary.mkdir(exist_ok=True)
    with (place.root / f"{folder.run_id}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(temporary)})


def final_adapter(place: Bench, folder: RunFolder) -> bytes:
    return place.objects.get(f"{folder.checkpoint_prefix(STEPS)}/adapter_model.safetensors")


def wait_until(condition: object, *, seconds: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_worker_ends_with_the_same_bytes(place: Bench) -> None:
    """kill -9 three times at random moments; each new run continues; the final adapter is byte-identical."""
    straight = place.folder("run-straight")
    assert start(place, straight).wait(timeout=120) == 0
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    earlier: tuple[str, ...] = ()
    for attempt in range(3):
        folder = place.with_spec(earlier_runs=earlier).folder(f"run-{attempt}")
        process = start(place, folder)
        wait_until(lambda folder=folder: saved_steps(place.objects, folder), seconds=120)
        time.sleep(draw.uniform(0, 0.15))  # the moment of the kill is the random part, not a synchronisation
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        earlier = (folder.run_id, *earlier)
    last = place.with_spec(earlier_runs=earlier).folder("run-last")
    assert start(place, last).wait(timeout=120) == 0
    result = last.read_result()
    assert result is not None
    assert result.outcome is Outcome.SUCCEEDED
    assert final_adapter(place, last) == final_adapter(place, straight)


def kill_inside_a_save(process: subprocess.Popen[bytes], staging: Path, *, size: int) -> Path:
    """Kill a worker while a file of more than `size` bytes is unfinished; that file."""
    worker = psutil.Process(process.pid)
    while True:
        assert process.poll() is None, "it ended before it was caught"
        large = [path for path in staging.glob("*") if _size(path) > size]
        if large:
            worker.suspend()
            wait_until(lambda: worker.status() == psutil.STATUS_STOPPED)
            if large[0].exists():
                worker.kill()
                process.wait()
                return large[0]
            worker.resume()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_nothing_is_left_of_a_killed_save(place: Bench) -> None:
    """A worker that tunes all weights, killed while it writes them: a sweep takes the half file at once, and sweeps
    harm no run that goes on; in the end there is nothing in the system's temporary folder, storage's or the cache."""
    full = LoraSpec(full=True)
    place = place.with_spec(lora=full, optimizer=OptimizerSpec(learning_rate=1e-3), max_steps=8)
    staging, cache = place.root / "objects" / ".staging", place.root / "cache"
    first = place.folder("run-first")
    left = kill_inside_a_save(start(place, first), staging, size=100_000)
    last = place.with_spec(earlier_runs=(first.run_id,)).folder("run-last")
    process = start(place, last)
    assert place.objects.sweep(cache) >= 1
    assert not left.exists()
    while process.poll() is None:
        place.objects.sweep(cache)
    result = last.read_result()
    assert result is not None
    assert result.outcome is Outcome.SUCCEEDED
    left_over = {path.name for folder in (staging, cache / ".staging", place.root / "tmp") for path in folder.glob("*")}
    # torch keeps one folder for all processes of a user.
    assert not {name for name in left_over if not name.startswith("torchinductor_")}


@pytest.mark.slow
def test_pause_saves_and_the_next_run_finishes(place: Bench) -> None:
    """A worker asked to pause ends with its state saved; the next run ends with a straight run's bytes."""
    straight = place.folder("run-straight")
    assert start(place, straight).wait(timeout=120) == 0
    folder = place.with_spec(state_seconds=3600.0).folder("run-pause")
    process = start(place, folder)
    wait_until(lambda: any(e.kind == "step" for e in folder.read_events("")[0]), seconds=120)
    folder.request(Control.PAUSE)
    assert process.wait(timeout=60) == 0
    result = folder.read_result()
    assert result is not None
    if result.outcome is Outcome.PAUSED:
        assert saved_steps(place.objects, folder) == [result.step]
    last = place.with_spec(earlier_runs=(folder.run_id,)).folder("run-last")
    assert start(place, last).wait(timeout=120) == 0
    assert final_adapter(place, last) == final_adapter(place, straight)


@pytest.mark.slow
def test_bad_spec_and_bad_data_end_in_a_result(place: Bench) -> None:
    """A run that cannot begin says so in its result, with a code and the line, and exits 0."""
    place.objects.put("data/train", b'{"messages": 3}\n')
    folder = place.folder("run-bad")
    assert start(place, folder).wait(timeout=120) == 0
    result = folder.read_result()
    assert result is not None
    assert result.outcome is Outcome.FAILED
    assert "Line 1" in (result.error_message or "")
