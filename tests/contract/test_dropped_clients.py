"""Clients that hang up: the engine's places come free, and what they are charged for is what they were sent."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.api_server import TINY, Server
from tests.raw_streams import LETTERS, Ask, gauges, hear, hear_all

from smedje.store import usage as usage_rows

# Any byte at all, so that many tokens are pieces of characters; never the end.
ANYTHING = {str(token): -100 for token in range(3)}
BODY = {"model": TINY, "messages": [{"role": "user", "content": "hi"}], "temperature": 1, "logit_bias": LETTERS}


def ask(server: Server, *, tokens: int, **changes: Any) -> Ask:
    """A stream whose tokens can be counted."""
    body = {**BODY, "max_tokens": tokens, "stream": True, "logprobs": True, **changes}
    return Ask(url=server.url, key=server.key, body=body)


def metered(server: Server) -> tuple[int, int]:
    """Rows and completion tokens of all usage so far."""
    with server.ctx.database.transaction() as tx:
        totals = usage_rows.sum_usage(tx, server.project.id, 0, 2**40)
    return sum(one.records for one in totals), sum(one.completion_tokens for one in totals)


def in_engine(server: Server) -> int:
    """Completions that run or wait in the engine."""
    return sum(gauges(server.get("/metrics").text, "running", "waiting"))


async def until(look: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Look again and again until it is so."""
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(look):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_dropped_streams_cost_what_was_sent(server: Server) -> None:
    """Of 48 clients that close their sending half in mid-stream each has one usage row, and what is billed is exactly
    what still arrives until the server closes; the engine is empty soon after. Pieces of characters and beginnings of
    stop strings that were held back, and choices side by side, are no exception."""

    async def run() -> None:
        await hear(ask(server, tokens=2))
        before = metered(server)
        anything: dict[str, Any] = {"logit_bias": ANYTHING, "stop": ["\x01ab", "zz\x02"]}
        asks = [
            replace(ask(server, tokens=400, **changes), leave_after=1 + 5 * (number % 8))
            for number in range(16)
            for changes in ({}, anything, {**anything, "n": 3})
        ]
        heard = await hear_all(asks, at_once=16)
        last = time.monotonic()
        await until(lambda: in_engine(server) == 0)
        assert time.monotonic() - last < 5, "a second on an idle machine"
        await until(lambda: metered(server)[0] - before[0] == len(asks))
        assert all(one.left and not one.whole for one in heard)
        assert metered(server)[1] - before[1] == sum(one.tokens for one in heard)

    asyncio.run(run())


def test_clients_that_leave_while_they_wait_cost_nothing(server: Server) -> None:
    """Behind a full engine a client that hangs up gives its place in the queue back; neither row nor token is left of
    it, and everybody else has a whole answer."""

    async def run() -> None:
        await hear(ask(server, tokens=2))
        before = metered(server)
        # More than run at once, and long enough that all are still there when the last has come, on a busy machine too.
        staying = [asyncio.create_task(hear(ask(server, tokens=450))) for _ in range(34)]
        await until(lambda: in_engine(server) == len(staying))
        leaving = [
            asyncio.create_task(hear(ask(server, tokens=300, stream=number % 2 == 0, logprobs=number % 2 == 0)))
            for number in range(8)
        ]
        await until(lambda: in_engine(server) == len(staying) + len(leaving))
        for one in leaving:
            one.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        heard = await asyncio.gather(*staying)
        await until(lambda: in_engine(server) == 0)
        assert all(one.whole and one.tokens == 450 for one in heard)
        await until(lambda: metered(server)[0] - before[0] >= len(staying))
        assert metered(server) == (before[0] + len(staying), before[1] + 450 * len(staying))

    asyncio.run(run())


def test_a_reset_in_mid_stream_frees_its_place(server: Server) -> None:
    """A connection that is reset is billed no less than what came, and far less than was asked for."""

    async def run() -> None:
        await hear(ask(server, tokens=2))
        before = metered(server)
        asks = [replace(ask(server, tokens=450), leave_after=3, hard=True) for _ in range(8)]
        heard = await hear_all(asks, at_once=8)
        await until(lambda: in_engine(server) == 0)
        await until(lambda: metered(server)[0] - before[0] == len(asks))
        billed = metered(server)[1] - before[1]
        assert sum(one.tokens for one in heard) <= billed < 8 * 400

    asyncio.run(run())
