"""Workers as processes on this machine, each in its own session, outliving the server that started it.

Knows processes, process groups and signals; knows nothing of what they run. A worker is known by its number and the
moment it started, so that a number given to another process later is never taken for it.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from smedje.errors import Unavailable
from smedje.executors.base import OURS
from smedje.objects.identity import same_boot, start_mark

KILL_SECONDS = 10.0
POLL_SECONDS = 0.02


class LocalExecutor:
    """Implements `Executor`. Handle: {"pid": number, "started": mark}, as a worker's heartbeat has them too.

    A handle without them stands for a worker that was never seen: not alive, nothing to stop.
    """

    name = "local"

    def start(self, run_id: str, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> dict[str, Any]:
        """See Executor.start. The worker leads a new session and process group and has no input."""
        clean = {name: value for name, value in env.items() if not name.upper().startswith(OURS)}
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with open(descriptor, "ab") as output:
                process = subprocess.Popen(
                    list(argv),
                    env=clean,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise Unavailable(
                f"The worker for {run_id} could not be started: {error}. Program: {argv[0]}; log: {log}.",
                code="worker_not_started",
            ) from error
        # Not reaped before the thread below waits, so the mark is this process's even if it has already ended.
        handle = {"pid": process.pid, "started": start_mark(process.pid)}
        # A thread that waits reaps the child the moment it ends: no zombie, and nobody has to remember to ask.
        threading.Thread(target=process.wait, name=f"reap-{run_id}", daemon=True).start()
        return handle

    def adopt(self, pid: int) -> dict[str, Any]:
        """See Executor.adopt."""
        return {"pid": pid, "started": start_mark(pid)}

    def alive(self, handle: Mapping[str, Any]) -> bool:
        """See Executor.alive."""
        return _leader(handle) is not None

    def stop(self, handle: Mapping[str, Any], *, grace_seconds: float) -> None:
        """See Executor.stop. SIGTERM to the worker, which may still need its children; then, while grace lasts, to all
        that is left of its process group and descendants; then SIGKILL."""
        members = _members(handle)
        over = time.monotonic() + grace_seconds
        if (leader := _leader(handle)) is not None:
            _signal([leader], signal.SIGTERM)
            _wait([leader], seconds=grace_seconds)
        left = [process for process in members if _running(process)]
        _signal(left, signal.SIGTERM)
        left = _wait(left, seconds=over - time.monotonic())
        deadline = time.monotonic() + KILL_SECONDS
        # Looked up again each time: a member may have had children between the look and the signal.
        while left := list({*left, *_members(handle)}):
            _signal(left, signal.SIGKILL)
            left = _wait(left, seconds=1.0)
            if left and time.monotonic() > deadline:
                numbers = ", ".join(str(process.pid) for process in left)
                raise Unavailable(f"Processes {numbers} cannot be ended; the system holds them.", code="worker_stuck")


def _leader(handle: Mapping[str, Any]) -> psutil.Process | None:
    pid, started = handle.get("pid"), handle.get("started")
    if not isinstance(pid, int) or started is None or start_mark(pid) != started:
        return None
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _members(handle: Mapping[str, Any]) -> list[psutil.Process]:
    """The worker, its descendants, and whoever else is in its process group. None for a handle without a process."""
    pid, started = handle.get("pid"), handle.get("started")
    if not isinstance(pid, int) or not isinstance(started, str):
        return []
    leader = _leader(handle)
    found: set[psutil.Process] = set()
    if leader is not None:
        with contextlib.suppress(psutil.Error):
            found.update([leader, *leader.children(recursive=True)])
    # While a group has members the system gives its number to no new process. So if no other process has the number
    # now, the group is still the one that the worker led.
    if same_boot(started) and start_mark(pid) in (None, started):
        found.update(process for process in psutil.process_iter() if _in_session(process.pid, pid))
    return [process for process in found if _running(process)]


def _in_session(pid: int, leader: int) -> bool:
    if not hasattr(os, "getpgid"):
        return False
    try:
        return os.getpgid(pid) == leader and os.getsid(pid) == leader
    except OSError:
        return False


def _running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait(processes: Sequence[psutil.Process], *, seconds: float) -> list[psutil.Process]:
    # psutil.wait_procs would wait for an orphan's zombie, which some containers' first process never reaps.
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if _running(process)]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return left


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        # psutil checks the start time before it signals, so a reused number is not hit.
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
