"""Asks an engine over its socket, from the async API process. Knows lines and connections; no torch, no text."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from smedje.errors import Unavailable
from smedje.serving.engine import EngineStats, GenerationRequest, TokenChunk
from smedje.serving.protocol import (
    MAX_LINE_BYTES,
    GenerateLine,
    PingLine,
    ReplyLine,
    chunk_of_line,
    decode_reply,
    encode_line,
    error_of_body,
    line_of_request,
)

ENGINE_GONE = "engine_gone"


async def generate(socket: Path, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
    """Chunks of one completion, the last with finish and usage. Closing the iterator cancels the completion.

    Raises what the engine raised (InvalidRequest, NotFound), and Unavailable (code engine_gone) when the engine cannot
    be reached or goes away half-way.
    """
    async with _connection(socket, line_of_request(request)) as reader:
        while True:
            reply = await _read(reader)
            yield chunk_of_line(reply)
            if reply.finish is not None:
                return


async def ping(socket: Path) -> EngineStats:
    """How busy the engine is. Raises Unavailable when it is not there."""
    async with _connection(socket, PingLine()) as reader:
        reply = await _read(reader)
        if reply.stats is None:
            raise Unavailable("The engine answered a ping with something else.", code=ENGINE_GONE)
        return reply.stats


@asynccontextmanager
async def _connection(socket: Path, line: GenerateLine | PingLine) -> AsyncIterator[asyncio.StreamReader]:
    try:
        reader, writer = await asyncio.open_unix_connection(socket, limit=MAX_LINE_BYTES)
    except (ConnectionRefusedError, FileNotFoundError) as gone:
        raise Unavailable("The engine of this model is not running. Try again.", code=ENGINE_GONE) from gone
    except OSError as busy:
        raise Unavailable("The engine of this model cannot be reached. Try again.", code="engine_unreachable") from busy
    try:
        writer.write(encode_line(line))
        yield reader
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> ReplyLine:
    try:
        line = await reader.readline()
    except OSError:
        line = b""
    if not line.endswith(b"\n"):
        raise Unavailable("The engine of this model went away. Try again.", code=ENGINE_GONE)
    reply = decode_reply(line)
    if reply.error is not None:
        raise error_of_body(reply.error)
    return reply
