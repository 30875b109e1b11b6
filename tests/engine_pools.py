"""A pool over real engine processes in a folder of its own, which tests may kill, and what they wait with."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from smedje.executors.base import worker_environment
from smedje.executors.local import LocalExecutor
from smedje.serving.engine import GenerationRequest
from smedje.serving.supervisor import EnginePool, EngineSettings

NAME = "tiny"


class RecordingExecutor(LocalExecutor):
    """The local executor, which remembers what it started."""

    def __init__(self) -> None:
        self.handles: list[dict[str, Any]] = []

    def start(self, *args: Any, **options: Any) -> dict[str, Any]:
        self.handles.append(super().start(*args, **options))
        return self.handles[-1]

    def processes(self) -> list[psutil.Process]:
        """What runs of it, in order of start."""
        return [psutil.Process(handle["pid"]) for handle in self.handles if self.alive(handle)]


class Bench:
    """A pool over real processes, in a folder of its own."""

    def __init__(self, folder: Path, objects: Path, home: Path) -> None:
        self.folder = folder
        self.starter = RecordingExecutor()
        self.settings = EngineSettings(
            objects_url=objects.as_uri(),
            cache=home / "cache",
            logs=home / "logs",
            threads=1,
            grace_seconds=5.0,
            env=worker_environment(os.environ, objects_url=objects.as_uri()),
        )

    @asynccontextmanager
    async def pool(self, **changes: Any) -> AsyncIterator[EnginePool]:
        """A pool that is closed at the end."""
        pool = EnginePool(self.starter, replace(self.settings, **changes))
        try:
            yield pool
        finally:
            await pool.close()

    async def tokens(self, pool: EnginePool, asked: GenerationRequest, **place: Any) -> tuple[int, ...]:
        """All tokens of a request through the pool."""
        said: tuple[int, ...] = ()
        async with aclosing(pool.generate(NAME, self.folder, asked, **place)) as chunks:
            async for chunk in chunks:
                said += chunk.tokens
        return said

    @property
    def log(self) -> str:
        """What the engine's processes have printed."""
        return (self.settings.logs / f"engine-{NAME}.log").read_text()


async def until(fact: Callable[[], bool]) -> None:
    """Let the event loop run until `fact` is true."""
    async with asyncio.timeout(60):
        while not fact():
            await asyncio.sleep(0.01)


def run(body: Coroutine[Any, Any, None], *, seconds: float = 100) -> None:
    """Run a test's coroutine, which takes less than so many seconds."""

    async def limited() -> None:
        async with asyncio.timeout(seconds):
            await body

    asyncio.run(limited())
