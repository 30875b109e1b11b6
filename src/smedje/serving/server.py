"""The socket side of an engine process: connections in, chunks out. Knows any Engine by its verbs; no models."""

import asyncio
import itertools
import socket as socketlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from smedje.errors import InternalError, SmedjeError
from smedje.serving.engine import Delivery, Engine, GenerationRequest, TokenChunk
from smedje.serving.protocol import (
    MAX_LINE_BYTES,
    PingLine,
    ReplyLine,
    decode_request,
    encode_line,
    line_of_chunk,
    line_of_error,
    request_of_line,
)

# A full backlog refuses connections, which a client cannot tell from a dead engine.
BACKLOG = 1024


class EngineServer:
    """Serves one engine on a unix socket. The engine steps on a thread of its own; the rest is one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids = itertools.count(1)
        self._queues: dict[int, asyncio.Queue[TokenChunk | None]] = {}
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self, socket: Path, *, drain: asyncio.Event) -> None:
        """Serve until `drain` is set, then finish what has begun and close the engine.

        The socket appears, for this user alone, when requests can be taken. An error in a step is raised: an engine
        in an unknown state serves nobody.
        """
        listener = _listen(socket)
        server = await asyncio.start_unix_server(self._accept, sock=listener, limit=MAX_LINE_BYTES, backlog=BACKLOG)
        stepping = asyncio.create_task(asyncio.to_thread(self._step_until_closed, asyncio.get_running_loop()))
        draining = asyncio.create_task(drain.wait())
        try:
            await asyncio.wait({stepping, draining}, return_when=asyncio.FIRST_COMPLETED)
            server.close()
            socket.unlink(missing_ok=True)
            if not stepping.done():
                await asyncio.gather(*self._connections, return_exceptions=True)
        finally:
            draining.cancel()
            self._engine.close()
            await stepping

    def _step_until_closed(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._engine.wait():
            loop.call_soon_threadsafe(self._deliver, self._engine.step())

    def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            queue = self._queues.get(delivery.request_id)
            if queue is not None:
                queue.put_nowait(delivery.chunk)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        assert this is not None
        self._connections.add(this)
        try:
            await self._answer(reader, writer)
        except OSError:
            pass  # The client went away; there is nobody to tell.
        finally:
            self._connections.discard(this)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = decode_request(await reader.readline())
            if isinstance(line, PingLine):
                writer.write(encode_line(ReplyLine(stats=self._engine.stats())))
            else:
                await self._generate(request_of_line(line), reader, writer)
        except SmedjeError as error:
            writer.write(encode_line(line_of_error(error)))
        except (ValueError, RuntimeError) as error:
            traceback.print_exception(error, file=sys.stderr)
            writer.write(encode_line(line_of_error(InternalError("The engine failed on this request. See its log."))))

    async def _generate(
        self, request: GenerationRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        request_id = next(self._ids)
        queue = self._queues[request_id] = asyncio.Queue[TokenChunk | None]()
        hanging_up = asyncio.create_task(_put_at_end(reader, queue))
        try:
            await asyncio.to_thread(self._engine.add, request_id, request)
            while (chunk := await queue.get()) is not None:
                if chunk.error is not None:
                    raise chunk.error
                writer.write(encode_line(line_of_chunk(chunk)))
                await writer.drain()
                if chunk.finish is not None:
                    break
        finally:
            hanging_up.cancel()
            del self._queues[request_id]
            self._engine.cancel(request_id)


def _listen(path: Path) -> socketlib.socket:
    """A listening socket that appears at `path` in one go: for this user alone, and able to take connections."""
    listener = socketlib.socket(socketlib.AF_UNIX)
    # Between bind and listen a socket refuses connections, so it gets its name afterwards.
    unnamed = path.with_name(path.name + "~")
    listener.bind(str(unnamed))
    unnamed.chmod(0o600)
    listener.listen(BACKLOG)
    unnamed.rename(path)
    return listener


async def _put_at_end(reader: asyncio.StreamReader, queue: asyncio.Queue[TokenChunk | None]) -> None:
    """Put None into the queue when the client hangs up: one that waits for its answer sends nothing more."""
    try:
        await reader.read(1)
    except OSError:
        pass
    finally:
        queue.put_nowait(None)
