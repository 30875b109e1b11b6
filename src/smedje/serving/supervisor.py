"""Engine processes of this machine: one per base model, started when wanted, restarted when dead, stopped when idle.

Lives in the API process: async, no torch. Knows processes and sockets; knows nothing of deployments and prices. Starts
and stops processes through whatever the caller hands it.
"""

import asyncio
import itertools
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from smedje.errors import Unavailable
from smedje.objects.local_files import lent_folder
from smedje.serving import client
from smedje.serving.engine import EngineStats, GenerationRequest, TokenChunk

POLL_SECONDS = 0.05
# The kernel's limit on a socket's path is 107 bytes on Linux and 103 on macOS.
MAX_SOCKET_PATH_BYTES = 100
SOCKETS = "smedje-sockets-"


class ProcessStarter(Protocol):
    """Starts and stops commands; the local executor is one."""

    def start(self, run_id: str, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> dict[str, Any]: ...

    def alive(self, handle: dict[str, Any]) -> bool: ...

    def stop(self, handle: dict[str, Any], *, grace_seconds: float) -> None: ...


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How engines are run.

    command: what starts one; its options follow. objects_url: where adapters are. cache, logs: folders for fetched
    adapters and for what engines print.
    threads: compute threads of one engine; 0 means all usable cores. idle_seconds: without requests for this long an
    engine is stopped. start_seconds: an engine that is not ready by then has failed. grace_seconds: time to finish
    running completions when stopped. env: the whole environment of the process.
    """

    objects_url: str
    cache: Path
    logs: Path
    command: tuple[str, ...] = (sys.executable, "-m", "smedje.serving.worker")
    threads: int = 0
    idle_seconds: float = 900.0
    start_seconds: float = 120.0
    grace_seconds: float = 10.0
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """What the pool knows of one engine. requests: completions under way through this pool."""

    base_model: str
    running: bool
    requests: int


class _Slot:
    """One base model's place in the pool: at most one process, and a lock so that one request at a time starts it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.handle: dict[str, Any] | None = None
        self.socket = Path()
        self.ready = False
        self.requests = 0
        self.weights: str | None = None
        self.idle: asyncio.TimerHandle | None = None


class EnginePool:
    """Owns the engine processes that this process started. All methods belong to one event loop; `close` ends them."""

    def __init__(self, starter: ProcessStarter, settings: EngineSettings) -> None:
        self._starter = starter
        self._settings = settings
        self._slots: dict[str, _Slot] = {}
        self._folder: Path | None = None
        self._lent = ExitStack()
        self._starts = itertools.count(1)
        self._stopping: set[asyncio.Task[None]] = set()
        self._closed = False

    async def generate(
        self, base_model: str, folder: Path, request: GenerationRequest, *, weights: str | None = None
    ) -> AsyncGenerator[TokenChunk, None]:
        """Chunks of one completion by the engine of `base_model`, whose installed model folder is `folder`.

        weights: object-storage prefix of weights in place of the folder's own; such an engine has a name of its own.
        Starts the engine if need be; one found dead before its first chunk is replaced once. Close the iterator to
        cancel. Raises what serving.client.generate raises, and Unavailable when the engine does not start.
        """
        slot = self._slots.setdefault(base_model, _Slot())
        with self._in_use(slot):
            for last_try in (False, True):
                slot.weights = weights
                await self._make_ready(base_model, folder, slot)
                socket, begun = slot.socket, False
                try:
                    async with aclosing(client.generate(socket, request)) as chunks:
                        async for chunk in chunks:
                            begun = True
                            yield chunk
                    return
                except Unavailable as gone:
                    if gone.code != client.ENGINE_GONE:
                        raise
                    await self._drop_if_gone(slot, socket)
                    if begun or last_try:
                        raise

    async def warm(self, base_model: str, folder: Path) -> EngineStats:
        """Start the engine of a base model if need be and say how busy it is. Raises Unavailable."""
        slot = self._slots.setdefault(base_model, _Slot())
        with self._in_use(slot):
            await self._make_ready(base_model, folder, slot)
            return await client.ping(slot.socket)

    async def measured(self) -> dict[str, EngineStats]:
        """How busy each running engine is; none is started or kept awake by asking."""
        found = {}
        for name, slot in tuple(self._slots.items()):
            if slot.ready and self._alive(slot):
                with suppress(Unavailable):
                    found[name] = await client.ping(slot.socket)
        return found

    def states(self) -> list[EngineState]:
        """Every base model that was asked for, in order of first use."""
        return [
            EngineState(base_model=name, running=self._alive(slot), requests=slot.requests)
            for name, slot in self._slots.items()
        ]

    async def close(self) -> None:
        """Stop all engines, within the grace period, and start none again."""
        self._closed = True
        for slot in self._slots.values():
            if slot.idle is not None:
                slot.idle.cancel()
            self._retire(slot)
        await asyncio.gather(*self._stopping)
        self._lent.close()

    @contextmanager
    def _in_use(self, slot: _Slot) -> Iterator[None]:
        slot.requests += 1
        if slot.idle is not None:
            slot.idle.cancel()
        try:
            yield
        finally:
            slot.requests -= 1
            if slot.requests == 0 and not self._closed:
                slot.idle = asyncio.get_running_loop().call_later(self._settings.idle_seconds, self._retire, slot)

    async def _make_ready(self, base_model: str, folder: Path, slot: _Slot) -> None:
        """Return once the slot's process answers. A caller that gives up leaves the start to the next one."""
        async with slot.lock:
            if self._closed:
                raise Unavailable("The server is stopping.", code="stopping")
            if not self._alive(slot):
                # What a dead process has left behind would keep its memory.
                self._retire(slot)
                self._start(base_model, folder, slot)
            if slot.ready:
                return
            try:
                async with asyncio.timeout(self._settings.start_seconds):
                    await self._wait_until_ready(base_model, slot)
            except TimeoutError:
                self._retire(slot)
                raise Unavailable(
                    f"The engine of {base_model} was not ready within {self._settings.start_seconds:g} seconds. "
                    "Try again, or give the machine more memory and cores.",
                    code="engine_start_timeout",
                ) from None

    async def _wait_until_ready(self, base_model: str, slot: _Slot) -> None:
        while not await _answers(slot.socket):
            if not self._alive(slot):
                self._retire(slot)
                raise Unavailable(
                    f"The engine of {base_model} ended while starting. Its log on the server, "
                    f"{_log_name(base_model)}, says why.",
                    code="engine_start_failed",
                )
            await asyncio.sleep(POLL_SECONDS)
        slot.ready = True

    def _start(self, base_model: str, folder: Path, slot: _Slot) -> None:
        settings = self._settings
        if self._folder is None:
            self._folder = self._lent.enter_context(lent_folder(_socket_parent(settings.cache), prefix=SOCKETS))
        slot.ready = False
        slot.socket = self._folder / f"{next(self._starts)}.sock"
        options: dict[str, object] = {
            "--model-folder": folder,
            "--socket": slot.socket,
            "--objects": settings.objects_url,
            "--cache": settings.cache,
            "--threads": settings.threads,
            "--parent": os.getpid(),
        }
        if slot.weights is not None:
            options["--weights"] = slot.weights
        argv = list(settings.command)
        for name, value in options.items():
            argv += [name, str(value)]
        slot.handle = self._starter.start(
            f"engine-{base_model}", argv, env=settings.env, log=settings.logs / _log_name(base_model)
        )

    def _alive(self, slot: _Slot) -> bool:
        return slot.handle is not None and self._starter.alive(slot.handle)

    async def _drop_if_gone(self, slot: _Slot, socket: Path) -> None:
        async with slot.lock:
            if slot.socket == socket and not await _answers(socket):
                self._retire(slot)

    def _retire(self, slot: _Slot) -> None:
        """Empty the slot and stop its process in the background, so that nobody waits for the grace period."""
        handle, slot.handle, slot.ready = slot.handle, None, False
        if handle is not None:
            stop = asyncio.to_thread(self._starter.stop, handle, grace_seconds=self._settings.grace_seconds)
            stopping = asyncio.get_running_loop().create_task(stop)
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)


async def _answers(socket: Path) -> bool:
    try:
        await client.ping(socket)
    except Unavailable:
        return False
    return True


def _log_name(base_model: str) -> str:
    return f"engine-{base_model}.log"


def _socket_parent(cache: Path) -> Path:
    """Where a folder for sockets goes: below `cache`, or where that would be too long for the kernel, elsewhere."""
    for parent in (cache, Path(tempfile.gettempdir())):
        if len(os.fsencode(parent / f"{SOCKETS}12345678" / "999999.sock")) <= MAX_SOCKET_PATH_BYTES:
            return parent
    return Path("/tmp")
