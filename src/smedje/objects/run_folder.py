"""The run folder: everything that the control plane and a worker say to each other, as objects under `runs/{id}/`.

    spec.json                    what to do                       written once by the control plane
    control/pause, cancel        what the worker is asked         written by the control plane
    events/{number}.jsonl        what happened, a batch each      written by the worker, numbered without gaps
    heartbeat.json               that the worker lives            replaced by the worker
    checkpoints/{step}/...       results that may be used         written by the worker
    state/{step}/...             what resuming needs              written by the worker
    result.json                  the worker's last word           written once and last

Knows names and JSON; knows nothing of what a spec asks or of files inside a checkpoint. Each object is written whole
or not at all, so a reader needs no lock. One worker process writes a run's events.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from smedje.domain.runs import Control, RunEvent, RunResult
from smedje.errors import Conflict, NotFound
from smedje.objects.identity import start_mark
from smedje.objects.store import Objects

EVENT_OBJECTS_PER_READ = 256


class RunFolder:
    """One run's folder. Cheap to make; holds no open files."""

    def __init__(self, objects: Objects, run_id: str) -> None:
        self.objects = objects
        self.run_id = run_id
        self._root = f"runs/{run_id}"
        self._next_event: int | None = None
        self._started = start_mark(os.getpid())

    def write_spec(self, spec: bytes) -> None:
        """Store what the run has to do. The bytes are the training or evaluation package's own JSON."""
        self.objects.put(f"{self._root}/spec.json", spec)

    def read_spec(self) -> bytes:
        """Raises NotFound when there is no such run."""
        return self.objects.get(f"{self._root}/spec.json")

    def emit(self, events: Sequence[RunEvent]) -> None:
        """Append events, in order, durably. Several at once are one object: batch what happens within a second.

        Raises Conflict (`run_folder_taken`) when another process has written events of this run meanwhile.
        """
        if not events:
            return
        if self._next_event is None:
            written = self.objects.list(f"{self._root}/events")
            self._next_event = _event_number(written[-1].key) + 1 if written else 0
        key = f"{self._root}/events/{self._next_event:010d}.jsonl"
        data = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        self._put_once(key, data)
        self._next_event += 1

    def read_events(self, after: str) -> tuple[list[RunEvent], str]:
        """Events that came after the cursor `after` ("" for the beginning), oldest first, and the new cursor.

        At most 256 objects are read; call again until the cursor stands still. A line that cannot be understood
        becomes a warning in its place, so that one bad line cannot stop a job's story.
        """
        start = f"{self._root}/events/{after}.jsonl" if after else ""
        found = self.objects.list(f"{self._root}/events", after=start)[:EVENT_OBJECTS_PER_READ]
        events = [_event(line) for info in found for line in self.objects.get(info.key).splitlines() if line]
        return events, f"{_event_number(found[-1].key):010d}" if found else after

    def heartbeat(self, data: Mapping[str, Any]) -> None:
        """Say that the worker lives, and which process it is. data: small JSON, such as step and time.

        `pid` and `started` are added, as in a local executor's handle, so that a server that never learnt the handle
        finds the worker by its heartbeat.
        """
        pulse = {**data, "pid": os.getpid(), "started": self._started}
        self.objects.put(f"{self._root}/heartbeat.json", msgspec.json.encode(pulse))

    def read_heartbeat(self) -> dict[str, Any] | None:
        """The last heartbeat, or None before the first."""
        data = self._read(f"{self._root}/heartbeat.json")
        try:
            return None if data is None else msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.MsgspecError:
            return None

    def request(self, control: Control) -> None:
        """Ask the worker to pause or cancel. Asking again changes nothing; a cancel cannot be taken back."""
        self.objects.put(f"{self._root}/control/{control.value}", b"")

    def requested(self) -> Control | None:
        """What the worker is asked to do: cancel if that was ever asked, else pause if that was, else None."""
        asked = {info.key.rpartition("/")[2] for info in self.objects.list(f"{self._root}/control")}
        return next((control for control in (Control.CANCEL, Control.PAUSE) if control.value in asked), None)

    def write_result(self, result: RunResult) -> None:
        """The worker's last word. The same word twice is fine; raises Conflict (`run_folder_taken`) for another."""
        self._put_once(f"{self._root}/result.json", msgspec.json.encode(result))

    def read_result(self) -> RunResult | None:
        """The worker's last word, or None while there is none that can be understood."""
        data = self._read(f"{self._root}/result.json")
        try:
            return None if data is None else msgspec.json.decode(data, type=RunResult)
        except msgspec.MsgspecError:
            return None

    def checkpoint_prefix(self, step: int) -> str:
        """Where the adapter saved after `step` optimizer steps lives."""
        return f"{self._root}/checkpoints/{step:010d}"

    def state_prefix(self, step: int) -> str:
        """Where what resuming after `step` optimizer steps needs lives."""
        return f"{self.state_root()}/{step:010d}"

    def state_root(self) -> str:
        """The prefix of all saved states of the run."""
        return f"{self._root}/state"

    def has_state(self) -> bool:
        """Whether the run has saved anything that a later run could continue from."""
        return bool(self.objects.list(f"{self._root}/state"))

    def delete(self) -> None:
        """Remove the whole folder, checkpoints included."""
        self.objects.delete_prefix(self._root)

    def _put_once(self, key: str, data: bytes) -> None:
        try:
            self.objects.put(key, data, create_only=True)
        except Conflict as error:
            # A bucket may answer "exists" to our own write after a lost reply; the same bytes are our own.
            if self._read(key) != data:
                raise Conflict(
                    f"Another process already wrote {key}; this one must stop.", code="run_folder_taken"
                ) from error

    def _read(self, key: str) -> bytes | None:
        try:
            return self.objects.get(key)
        except NotFound:
            return None


def _event_number(key: str) -> int:
    return int(key.rpartition("/")[2].removesuffix(".jsonl"))


def _event(line: bytes) -> RunEvent:
    try:
        return msgspec.json.decode(line, type=RunEvent)
    except msgspec.MsgspecError:
        return RunEvent(kind="message", at=0.0, level="warn", message="An event of the run could not be read.")
