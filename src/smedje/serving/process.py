"""What every engine process shares: its command line, and how it is told to end. Knows no engine, loads no model."""

import argparse
import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil

PARENT_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The command line. threads: 0 leaves it to the engine. parent: process whose end ends this one.

    weights: object-storage prefix of weights in place of the model folder's own.
    """

    model_folder: Path
    socket: Path
    objects: str
    cache: Path
    threads: int
    parent: int
    weights: str | None = None


def option_parser(program: str) -> argparse.ArgumentParser:
    """The options of every engine process, named as the fields of WorkerOptions."""
    parser = argparse.ArgumentParser(prog=program, description="Serve one base model on a socket.")
    parser.add_argument("--model-folder", type=Path, required=True, help="an installed base model")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to create")
    parser.add_argument("--objects", required=True, help="object storage URL that adapter keys refer to")
    parser.add_argument("--cache", type=Path, required=True, help="folder for adapters fetched from a bucket")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0 leaves it to the engine")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="process whose end ends this one")
    parser.add_argument("--weights", help="object-storage prefix of weights in place of the model's own")
    return parser


@contextlib.asynccontextmanager
async def told_to_end(options: WorkerOptions) -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM sets, or the end of the parent; in the second case the socket's folder goes too."""
    drain = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, drain.set)
    watching = asyncio.create_task(_set_when_gone(options.parent, drain))
    try:
        yield drain
    finally:
        orphaned = watching.done()
        watching.cancel()
        if orphaned:
            # The folder was the parent's, and nobody else is left to remove it.
            with contextlib.suppress(OSError):
                options.socket.parent.rmdir()


async def _set_when_gone(parent: int, drain: asyncio.Event) -> None:
    """Set the event when the process is gone. Its connections are closed by then, so draining ends at once."""
    try:
        process = psutil.Process(parent)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(PARENT_POLL_SECONDS)
    except psutil.NoSuchProcess:
        pass
    drain.set()
