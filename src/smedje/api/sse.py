"""Server-sent events in OpenAI's form: `data: <json>`, then `data: [DONE]`. Knows nothing of what is sent."""

import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from smedje.api.errors import SERVER_ERROR_TEXT, error_body, to_body
from smedje.errors import SmedjeError

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

log = logging.getLogger("smedje.api")


class EventStream(StreamingResponse):
    """An answer that sends each chunk as it comes. An error half-way becomes a last chunk `{"error": …}`.

    source: what the chunks are made of; it is closed as soon as the answer has ended, however that was.
    """

    def __init__(self, chunks: AsyncGenerator[dict[str, Any], None], source: AsyncGenerator[Any, None]) -> None:
        super().__init__(_lines(chunks), media_type="text/event-stream", headers=HEADERS)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. A client that goes away stops the generation now, not when the garbage collector comes by."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()


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
