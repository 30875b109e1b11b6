"""Workers as processes on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.contract.executor_suite import WAIT, ExecutorSuite, within

from smedje.errors import Unavailable
from smedje.executors.base import Executor, worker_environment
from smedje.executors.local import LocalExecutor
from smedje.objects.identity import start_mark


class TestLocalExecutor(ExecutorSuite):
    """The shared promises, kept by local processes."""

    @pytest.fixture
    def executor(self) -> Executor:
        """A fresh one for each test."""
        return LocalExecutor()

    def test_a_reused_number_is_not_the_worker(self, executor: Executor, workers: Any) -> None:
        """A handle whose start does not match the process of that number is dead, and stop leaves the process alone."""
        handle = workers(WAIT)
        stranger = {**handle, "started": "another boot:1"}
        assert not executor.alive(stranger)
        executor.stop(stranger, grace_seconds=0)
        assert executor.alive(handle)

    def test_a_worker_that_was_never_seen_is_not_alive(self, executor: Executor) -> None:
        """A handle without a process, as of a run whose start was cut off, is dead and can be stopped."""
        assert not executor.alive({"memory_bytes": 5})
        executor.stop({"memory_bytes": 5}, grace_seconds=0)

    def test_ended_workers_leave_no_zombies(self, executor: Executor, workers: Any) -> None:
        """A worker that ended is reaped without anybody asking about it."""
        pids = [workers("pass")["pid"] for _ in range(5)]
        assert within(60, lambda: not any(psutil.pid_exists(pid) for pid in pids))

    def test_workers_outlive_the_server(self, executor: Executor, tmp_path: Path) -> None:
        """A worker goes on when the process that started it is killed, and can be adopted and stopped."""
        server = (
            "import json, os, signal, sys\nfrom pathlib import Path\nfrom smedje.executors.local import LocalExecutor\n"
            f"argv, log = [sys.executable, '-c', {WAIT!r}], Path({str(tmp_path / 'log')!r})\n"
            "h = LocalExecutor().start('run-1', argv, env={}, log=log)\n"
            "print(json.dumps(h), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-c", server], capture_output=True, text=True, timeout=60)
        assert done.returncode < 0
        handle = json.loads(done.stdout)
        assert executor.alive(handle)
        executor.stop(handle, grace_seconds=20)
        assert not executor.alive(handle)

    def test_a_program_that_is_missing_is_named(self, executor: Executor, tmp_path: Path) -> None:
        """Starting what does not exist is an error that says so."""
        with pytest.raises(Unavailable, match="no-such-program"):
            executor.start("run-1", [str(tmp_path / "no-such-program")], env={}, log=tmp_path / "log")

    def test_the_log_is_private(self, workers: Any, tmp_path: Path) -> None:
        """A worker's output may quote data, so only its owner may read it."""
        workers("pass")
        assert (tmp_path / "logs" / "run-1.log").stat().st_mode & 0o777 == 0o600


def test_a_start_mark_tells_processes_apart() -> None:
    """Two processes differ, one process keeps its mark, and a number without a process has none."""
    child = subprocess.Popen([sys.executable, "-c", WAIT])
    try:
        assert start_mark(os.getpid()) == start_mark(os.getpid()) is not None
        assert start_mark(child.pid) != start_mark(os.getpid())
    finally:
        child.kill()
        child.wait()
    assert start_mark(child.pid) is None


def test_the_environment_is_an_allow_list() -> None:
    """Paths and device settings pass; secrets do not, except a bucket's credentials when objects are in that bucket."""
    environ = {"PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "0", "SMEDJE_API_KEY": "k", "OPENAI_API_KEY": "k"}
    environ |= {"AWS_SECRET_ACCESS_KEY": "s", "DATABASE_PASSWORD": "p"}
    kept = {"PATH", "LC_ALL", "CUDA_VISIBLE_DEVICES", "OMP_WAIT_POLICY", "MALLOC_ARENA_MAX"}
    assert set(worker_environment(environ, objects_url="file:///x")) == kept
    assert set(worker_environment(environ, objects_url="s3://bucket/x")) == kept | {"AWS_SECRET_ACCESS_KEY"}
