"""A waiting process on this machine that has libraries and a base model in memory and becomes workers by forking.

Knows processes, one socket and two messages (domain/runs.py); knows nothing of models beyond the folder that names
them. A worker made this way is found, watched and stopped by `LocalExecutor` like any other: by number and start mark.
"""

import logging
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from smedje.domain.runs import WorkerAnswer, WorkerOrder
from smedje.executors.base import OURS
from smedje.objects.identity import start_mark
from smedje.objects.machine import missing_memory

# A fork takes milliseconds; a machine that swaps takes longer. Whoever answers later is found by its heartbeat.
ANSWER_SECONDS = 5.0

log = logging.getLogger("smedje.executors")


@dataclass
class _Waiting:
    """A process with its end of the socket. waited_since: monotonic time of its last use."""

    model_folder: str
    process: subprocess.Popen[bytes]
    orders: socket.socket
    waited_since: float
    ready: bool = False
    unread: bytes = b""


@dataclass
class WarmWorkers:
    """Owns at most one waiting process, for one base model at a time; every method belongs to one thread.

    command: starts it, with the model folder appended. env: its whole environment. log: file for its output.
    idle_seconds: unused for this long it ends; 0 means that there is none ever.
    """

    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    idle_seconds: float
    _waiting: _Waiting | None = field(default=None, init=False)

    def keep(self, model_folder: str) -> None:
        """Have a process waiting with this base model, and none with another. Returns at once."""
        if self.idle_seconds <= 0 or sys.platform != "linux":
            return
        now = self._current()
        if now is not None and now.model_folder == model_folder:
            now.waited_since = time.monotonic()
            return
        self.close()
        if not missing_memory():
            self._waiting = self._start(model_folder)

    def start(self, run_id: str, model_folder: str, *, log: Path) -> dict[str, Any] | None:
        """Order a worker for a run. Its handle; {} when it is still to come, and then says its number by heartbeat.

        None when no process waits with this base model: nothing was ordered then.
        """
        now = self._current()
        if now is None:
            return None
        if now.model_folder != model_folder:
            # The memory that its base model holds is now wanted for another one.
            self.close()
            return None
        log.parent.mkdir(parents=True, exist_ok=True)
        order = WorkerOrder(run=run_id, log=str(log))
        try:
            now.orders.sendall(msgspec.json.encode(order) + b"\n")
        except OSError:
            # It ended before the order could reach it, so no worker will come of it.
            self.close()
            return None
        now.waited_since = time.monotonic()
        deadline = time.monotonic() + ANSWER_SECONDS
        while now.ready and time.monotonic() < deadline:
            for answer in _answers(now, seconds=deadline - time.monotonic()):
                if answer.run == run_id:
                    return {"pid": answer.pid, "started": start_mark(answer.pid)}
            if now.process.poll() is not None:
                break
        return {}

    @property
    def reading(self) -> bool:
        """Whether the process is still reading its base model, so that its answers are late."""
        now = self._current()
        if now is not None and not now.ready:
            _answers(now, seconds=0)
        return now is not None and not now.ready

    def tend(self, *, busy: bool) -> None:
        """Give its memory back when it has waited long enough, or when the machine runs short. busy: runs go on."""
        now = self._current()
        if now is None:
            return
        if busy:
            now.waited_since = time.monotonic()
        elif time.monotonic() - now.waited_since > self.idle_seconds or missing_memory():
            self.close()

    def close(self) -> None:
        """End the process; workers that came of it go on."""
        now, self._waiting = self._waiting, None
        if now is not None:
            now.orders.close()
            now.process.terminate()
            threading.Thread(target=now.process.wait, name="reap-warm", daemon=True).start()

    def _current(self) -> _Waiting | None:
        if self._waiting is not None and self._waiting.process.poll() is not None:
            self._waiting.orders.close()
            self._waiting = None
        return self._waiting

    def _start(self, model_folder: str) -> _Waiting | None:
        ours, theirs = socket.socketpair()
        clean = {name: value for name, value in self.env.items() if not name.upper().startswith(OURS)}
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with theirs, self.log.open("ab") as output:
                process = subprocess.Popen(
                    [*self.command, "--model-folder", model_folder],
                    env=clean,
                    stdin=theirs.fileno(),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            # Runs start cold then; only the time until the first step is lost.
            log.warning("no process could be kept ready: %s", error)
            ours.close()
            return None
        return _Waiting(model_folder=model_folder, process=process, orders=ours, waited_since=time.monotonic())


def _answers(waiting: _Waiting, *, seconds: float) -> list[WorkerAnswer]:
    """What it has said by now, waiting at most so long for the first words."""
    found: list[WorkerAnswer] = []
    with suppress(OSError):
        while select.select([waiting.orders], [], [], max(0.0, 0.0 if found else seconds))[0]:
            data = waiting.orders.recv(65536)
            if not data:
                break
            *lines, waiting.unread = (waiting.unread + data).split(b"\n")
            found += [msgspec.json.decode(line, type=WorkerAnswer) for line in lines]
    if any(not answer.run for answer in found):
        waiting.ready = True
    return found
