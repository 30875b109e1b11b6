"""What every executor must do, tried with real processes. A test class inherits it and gives an `executor` fixture."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from smedje.executors.base import Executor, worker_environment

IGNORES_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
WAIT = "import threading; threading.Event().wait(120)\n"


def within(seconds: float, fact: Callable[[], bool]) -> bool:
    """Whether `fact` becomes true in time."""
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


class ExecutorSuite:
    """Inherit, and define a fixture `executor` that gives a fresh Executor."""

    @pytest.fixture
    def workers(self, executor: Executor, tmp_path: Path) -> "Any":
        """A function that starts a Python program as a worker; what still lives at the end is stopped."""
        handles: list[dict[str, Any]] = []

        def start(program: str, **env: str) -> dict[str, Any]:
            names = {**worker_environment(os.environ, objects_url="file:///"), "PYTHONUNBUFFERED": "1", **env}
            log = tmp_path / "logs" / "run-1.log"
            handles.append(executor.start("run-1", [sys.executable, "-c", program], env=names, log=log))
            return handles[-1]

        yield start
        for handle in handles:
            executor.stop(handle, grace_seconds=0)

    def output(self, tmp_path: Path) -> str:
        """What the workers have written so far."""
        path = tmp_path / "logs" / "run-1.log"
        return path.read_text() if path.exists() else ""

    def said(self, tmp_path: Path, text: str) -> bool:
        """Whether a worker writes `text` within a reasonable time."""
        return within(60, lambda: text in self.output(tmp_path))

    def number(self, tmp_path: Path, label: str) -> int:
        """The number that a worker wrote after `label=`."""
        assert self.said(tmp_path, f"{label}=")
        assert within(10, lambda: "\n" in self.output(tmp_path).partition(f"{label}=")[2])
        return int(self.output(tmp_path).partition(f"{label}=")[2].split()[0])

    def test_a_worker_runs_and_ends(self, executor: Executor, workers: Any, tmp_path: Path) -> None:
        """A started worker is alive until it ends, and both its outputs are in the log."""
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        program = f"import sys; print('out'); print('err', file=sys.stderr); open({str(gate)!r}).read(); print('done')"
        handle = workers(program)
        assert self.said(tmp_path, "err")
        assert executor.alive(handle)
        gate.write_text("go")
        assert within(30, lambda: not executor.alive(handle))
        assert self.output(tmp_path).split() == ["out", "err", "done"]

    def test_stop_lets_a_worker_finish_its_words(self, executor: Executor, workers: Any, tmp_path: Path) -> None:
        """Within the grace time a worker may end by itself after being asked."""
        program = "import signal, sys\ndef end(*_): print('saved'); sys.exit(0)\nsignal.signal(signal.SIGTERM, end)\n"
        handle = workers(program + "print('ready')\n" + "signal.pause()")
        assert self.said(tmp_path, "ready")
        executor.stop(handle, grace_seconds=30)
        assert not executor.alive(handle)
        assert "saved" in self.output(tmp_path)

    def test_stop_ends_a_worker_that_will_not(self, executor: Executor, workers: Any, tmp_path: Path) -> None:
        """A worker that ignores the request is ended by force after the grace time, not before."""
        handle = workers(IGNORES_TERM + "print('ready')\n" + WAIT)
        assert self.said(tmp_path, "ready")
        began = time.monotonic()
        executor.stop(handle, grace_seconds=0.3)
        assert time.monotonic() - began >= 0.3
        assert not executor.alive(handle)

    def test_stop_takes_children_along(self, executor: Executor, workers: Any, tmp_path: Path) -> None:
        """A worker's children die with it, even those that ignore the request."""
        child = f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {IGNORES_TERM + WAIT!r}])\n"
        handle = workers(child + "print(f'child={c.pid}')\n" + WAIT)
        pid = self.number(tmp_path, "child")
        executor.stop(handle, grace_seconds=0.2)
        assert not _runs(pid)

    def test_stop_ends_what_a_dead_worker_left_behind(self, executor: Executor, workers: Any, tmp_path: Path) -> None:
        """Children outlive a worker that crashed; stopping it ends them too."""
        child = f"import os, subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {IGNORES_TERM + WAIT!r}])\n"
        handle = workers(child + "print(f'child={c.pid}')\nos._exit(1)")
        pid = self.number(tmp_path, "child")
        assert within(30, lambda: not executor.alive(handle))
        assert _runs(pid)
        executor.stop(handle, grace_seconds=0.2)
        assert not _runs(pid)

    def test_stopping_twice_is_no_error(self, executor: Executor, workers: Any) -> None:
        """A worker that has ended may be stopped again."""
        handle = workers(WAIT)
        executor.stop(handle, grace_seconds=5)
        executor.stop(handle, grace_seconds=5)
        assert not executor.alive(handle)

    def test_two_workers_are_apart(self, executor: Executor, workers: Any, tmp_path: Path) -> None:
        """Stopping one worker leaves another alone."""
        first, second = workers(WAIT), workers("print('ready')\n" + WAIT)
        assert self.said(tmp_path, "ready")
        executor.stop(first, grace_seconds=5)
        assert not executor.alive(first)
        assert executor.alive(second)

    def test_secrets_do_not_reach_a_worker(self, workers: Any, tmp_path: Path) -> None:
        """The environment is exactly what was given, less every name that begins with SMEDJE_."""
        os.environ["SECRET_OF_THE_SERVER"] = "s"
        try:
            workers("import os; print(sorted(os.environ), 'end')", SMEDJE_API_KEY="k", GIVEN="1")
            assert self.said(tmp_path, "end")
        finally:
            del os.environ["SECRET_OF_THE_SERVER"]
        assert "'GIVEN'" in self.output(tmp_path)
        assert "SMEDJE_" not in self.output(tmp_path)
        assert "SECRET_OF_THE_SERVER" not in self.output(tmp_path)

    def test_a_handle_works_in_another_process(self, executor: Executor, workers: Any, tmp_path: Path) -> None:
        """A server that restarts finds its workers again by their handles alone, and can stop them."""
        handle = workers("print('ready')\n" + WAIT)
        assert self.said(tmp_path, "ready")
        assert _elsewhere(executor, handle, "print(executor.alive(handle))") == "True"
        assert _elsewhere(
            executor, handle, "executor.stop(handle, grace_seconds=20); print(executor.alive(handle))"
        ) == ("False")
        assert not executor.alive(handle)


def _elsewhere(executor: Executor, handle: Mapping[str, Any], program: str) -> str:
    kind = type(executor)
    made = f"from {kind.__module__} import {kind.__qualname__}\nexecutor = {kind.__qualname__}()\n"
    made += f"handle = {dict(handle)!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", made + program], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
