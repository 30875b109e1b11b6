"""Streamed chats over plain sockets, many at a time: what came, and how it ended. For whoever counts tokens.

A request asks for log probabilities, so that every token sent is one entry of a chunk and the client can count them.
Drops come in two kinds. A half close says goodbye and still reads what the server had sent by then, to the last byte; a
hard close throws away what is on its way.
"""

import asyncio
import json
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

LINGER_NOTHING = struct.pack("ii", 1, 0)
# A bias that lets the tiny models' byte tokenizer say nothing but capital letters: no end, no pieces of characters.
LETTERS = {str(token): 100 for token in range(35, 61)}
# Errors inside a stream, and of a 503, that say: ask again.
TRY_AGAIN = frozenset({"connection", "engine_gone", "engine_unreachable", "stopping"})


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request. leave_after: tokens after which the client drops; None stays to the end. hard: a reset."""

    url: str
    key: str
    body: Mapping[str, Any]
    path: str = "/v1/chat/completions"
    leave_after: int | None = None
    hard: bool = False


@dataclass
class Heard:
    """What one client got. tokens: whose log probabilities came. whole: the stream's own end was seen.

    status: 0 when no answer began. error: the code of an error, in the answer or in the stream; `connection` when the
    server went away. usage: as the stream told it.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    whole: bool = False
    left: bool = False
    error: str | None = None
    usage: dict[str, Any] | None = None

    @property
    def retryable(self) -> bool:
        """Whether it is clear that nothing whole came, and that trying again is the thing to do."""
        if self.whole or self.error not in TRY_AGAIN:
            return False
        return self.status != 503 or self.headers.get("retry-after", "").isdigit()


async def hear(ask: Ask) -> Heard:
    """Send one request and read its answer, up to its end or to where the client leaves."""
    heard = Heard()
    where = urlsplit(ask.url)
    try:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
    except OSError:
        heard.error = "connection"
        return heard
    try:
        writer.write(_request(ask, where.netloc))
        await writer.drain()
        await _read(ask, heard, reader, writer)
    except (OSError, asyncio.IncompleteReadError):
        heard.error = heard.error or "connection"
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return heard


async def hear_all(asks: Sequence[Ask], *, at_once: int) -> list[Heard]:
    """What all clients heard, in their order, never more than `at_once` of them at a time."""
    places = asyncio.Semaphore(at_once)

    async def one(ask: Ask) -> Heard:
        async with places:
            return await hear(ask)

    return await asyncio.gather(*(one(ask) for ask in asks))


def gauges(page: str, *whats: str) -> list[int]:
    """What a metrics page says of all engines at this moment, for these names of gauges."""
    found = re.findall(r'^smedje_engine\{[^}]*what="(\w+)"\} (\S+)$', page, re.M)
    return [int(float(value)) for what, value in found if what in whats]


def _request(ask: Ask, host: str) -> bytes:
    body = json.dumps(ask.body).encode()
    head = (
        f"POST {ask.path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {ask.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


async def _read(ask: Ask, heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    heard.status = int(head[0].split()[1])
    heard.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if heard.status != 200:
        heard.error = _code(await reader.readexactly(int(heard.headers.get("content-length", "0"))))
        return
    if "chunked" not in heard.headers.get("transfer-encoding", ""):
        answer = json.loads(await reader.readexactly(int(heard.headers["content-length"])))
        heard.usage, heard.whole = answer["usage"], True
        return
    while line := await reader.readline():
        if line.startswith(b"data: "):
            _take(heard, line[6:].strip())
        if ask.leave_after is not None and heard.tokens >= ask.leave_after and not heard.left:
            heard.left = True
            if ask.hard:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOTHING)
                return
            writer.write_eof()
    if not heard.whole and heard.error is None and not heard.left:
        heard.error = "connection"


def _take(heard: Heard, data: bytes) -> None:
    if data == b"[DONE]":
        heard.whole = heard.error is None
        return
    chunk = json.loads(data)
    if "error" in chunk:
        heard.error = str(chunk["error"]["code"])
        return
    heard.usage = chunk.get("usage") or heard.usage
    for choice in chunk["choices"]:
        heard.tokens += len((choice.get("logprobs") or {}).get("content") or ())


def _code(body: bytes) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["code"])
    return "unreadable"
