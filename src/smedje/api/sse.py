"""Server-sent events in OpenAI's form: `data: <json>`, then `data: [DONE]`. Knows nothing of what is sent."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from smedje.api.errors import SERVER_ERROR_TEXT, error_body, to_body
from smedje.errors import SmedjeError

# The scope's extension that says whether the connection is closing: what is sent then is not written.
CLOSING = "smedje.closing"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

log = logging.getLogger("smedje.api")


class EventStream(StreamingResponse):
    """An answer that sends each chunk as it comes. An error half-way becomes a last chunk `{"error": …}`.

    A chunk is asked for only once the one before it was written to the connection, so whoever makes them can count.
    source: what the chunks are made of; it is closed as soon as the answer has ended, however that was.
    """

    def __init__(self, chunks: AsyncGenerator[dict[str, Any], None], source: AsyncGenerator[Any, None]) -> None:
        super().__init__(_lines(chunks), media_type="text/event-stream", headers=HEADERS)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. A client that goes away stops the generation now, not when the garbage collector comes by."""

        async def write(message: Message) -> None:
            if not closing():
                await send(message)
            # After the last message the connection may close because all is told.
            if message.get("more_body", False) and closing():
                raise _NotWritten

        closing = scope.get("extensions", {}).get(CLOSING, _never)
        try:
            await super().__call__(scope, receive, write)
        except _NotWritten:
            # The server itself is told of the end a turn of the loop later; before that it would complain.
            await asyncio.sleep(0)
        finally:
            await self._source.aclose()


class _NotWritten(Exception):
    """The client had gone when a chunk was to be written."""


def _never() -> bool:
    return False


async def _lines(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in chunks:
            yield _line(chunk)
        yield b"data: [DONE]\n\n"
    except SmedjeError as error:
        yield _line(to_body(error))
    except Exception:
        log.exception("a stream broke")
        yield _line(error_body(SERVER_ERROR_TEXT, kind="server_error", code="server_error"))


def _line(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n\n"
