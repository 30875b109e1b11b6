"""Serving under blows: python benchmarks/chaos_serve.py [--only drops,streams,limit,engine,server] [--json FILE]

A live server with a tiny model, clients over plain sockets on loopback. In turn:
drops: clients that hang up in mid-stream. Two thirds close their sending half, which ends the request, and count every
  byte that still arrives until the server closes: what was billed must equal what was sent, to the token, for letters
  and for random bytes with stop strings and two choices, where tokens are held back. The others send a reset; nobody
  can count what was on its way, so they are billed what came and a little more. The engine must be empty within a
  second of the last one.
streams: as many streams side by side as are asked for; all must come to their own end.
limit: as many requests at once under a limit of 100 a minute; 100 are answered, the others are told when to come again.
engine: kill -9 of the engine under load; server: kill -9 and Ctrl-C of the server under load, and a new start on the
  same state. Every client must have its answer or an error that says to try again; seconds until answers come again.
Exits 1 when anything is wrong. Needs Linux's /proc.
"""

import argparse
import asyncio
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx2
import psutil
from tests.raw_streams import LETTERS, Ask, Heard, gauges, hear, hear_all
from tests.server_process import KEY, MODEL, ServerProcess, engines, server_home

PARTS = ("drops", "streams", "limit", "engine", "server")
DEPLOYMENT = "under-load"
BODY = {"messages": [{"role": "user", "content": "hi"}], "temperature": 1, "logit_bias": LETTERS}
FREE_SECONDS, BACK_SECONDS, PER_MINUTE = 1.0, 10.0, 100
# Loopback clients, the server's side of them and its connections to the engine, all at once.
DESCRIPTORS = 16_384
# On its way, or in the kernel's hands, when a client resets its connection, a client on average.
LATE_TOKENS = 3.0
# Any byte but never the end: pieces of characters, held back until they are whole, and beginnings of stop strings.
ANYTHING = {"logit_bias": {"0": -100, "1": -100, "2": -100}, "stop": ["\x01ab", "zz\x02"], "n": 2}
# How clients leave: what they ask for, whether with a reset, and the share of all.
LEAVERS: dict[str, tuple[dict[str, Any], bool, float]] = {
    "half_close": ({}, False, 0.5),
    "half_close_any_bytes": (ANYTHING, False, 0.2),
    "reset": ({}, True, 0.3),
}
# A client waits a little before it asks again, as they all do.
PAUSE_SECONDS = 0.1


@dataclass
class Load:
    """Clients that ask without end, and what each request came to, with its times."""

    server: ServerProcess
    clients: int
    heard: list[tuple[float, float, Heard]] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the block runs they ask; each still reads its last answer."""
        stop = asyncio.Event()
        asking = [asyncio.create_task(self._client(number, stop)) for number in range(self.clients)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*asking)

    async def _client(self, number: int, stop: asyncio.Event) -> None:
        body = {**BODY, "model": DEPLOYMENT, "max_tokens": 60}
        body |= {"stream": True, "logprobs": True} if number % 2 else {}
        while not stop.is_set():
            began = time.monotonic()
            heard = await hear(Ask(url=self.server.url, key=KEY, body=body))
            self.heard.append((began, time.monotonic(), heard))
            if not heard.whole:
                await asyncio.sleep(PAUSE_SECONDS)

    async def answer_since(self, moment: float) -> float:
        """When the first whole answer ended that was asked for after `moment`."""
        while not (found := [end for began, end, heard in self.heard if heard.whole and began > moment]):
            assert time.monotonic() < moment + 60, "no answer came any more"
            await asyncio.sleep(0.01)
        return min(found)

    def ends(self) -> dict[str, int]:
        """How the requests came to an end, counted; `WRONG` for what says neither all nor try again."""

        def end(heard: Heard) -> str:
            if heard.whole:
                return "whole"
            told = f"{heard.status or 'no answer'} {heard.error}"
            return told if heard.retryable else f"WRONG {told}"

        return dict(Counter(end(heard) for _, _, heard in self.heard))


def ask(server: ServerProcess, **changes: Any) -> Ask:
    """A stream that counts its tokens."""
    body = {**BODY, "model": MODEL, "stream": True, "logprobs": True, **changes}
    return Ask(url=server.url, key=KEY, body=body)


def api(server: ServerProcess, method: str, path: str, body: object = None) -> Any:
    """The JSON of a plain request."""
    with httpx2.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as http:
        answer = http.request(method, path, json=body) if body is not None else http.request(method, path)
    answer.raise_for_status()
    return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text


def metered(server: ServerProcess) -> tuple[int, int]:
    """Requests and completion tokens in the usage of the project so far."""
    page = api(server, "GET", f"/v1/organization/usage/completions?start_time={int(time.time()) - 3600}")
    found = [one for bucket in page["data"] for one in bucket["results"]]
    return sum(one["num_model_requests"] for one in found), sum(one["output_tokens"] for one in found)


async def drops(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """Clients that leave: the engine's places, and usage against what was sent, for each way to leave apart."""
    draw, report = random.Random(options.seed), {}
    await hear(ask(server, max_tokens=2))
    for way, (changes, hard, share) in LEAVERS.items():
        before = metered(server)
        asks = [
            replace(ask(server, max_tokens=450, **changes), leave_after=draw.randint(1, 60), hard=hard)
            for _ in range(round(options.clients * share))
        ]
        began = time.monotonic()
        heard = await hear_all(asks, at_once=options.at_once)
        last = time.monotonic()
        while busy := sum(gauges(api(server, "GET", "/metrics"), "running", "waiting")):
            assert time.monotonic() < last + 30, f"{busy} requests are still in the engine"
            await asyncio.sleep(0.01)
        free = time.monotonic() - last
        while (now := metered(server))[0] - before[0] < len(asks) and time.monotonic() < last + 30:
            await asyncio.sleep(0.05)
        came = sum(one.tokens for one in heard)
        report[way] = {
            "clients": len(asks),
            "left_in_mid_stream": sum(one.left and not one.whole for one in heard),
            "seconds": round(last - began, 2),
            "engine_empty_after_seconds": round(free, 3),
            "usage_rows": now[0] - before[0],
            "tokens_asked_for": 450 * len(asks) * changes.get("n", 1),
            "tokens_that_came": came,
            "tokens_billed": now[1] - before[1],
            "billed_less_came_per_client": round((now[1] - before[1] - came) / len(asks), 3),
        }
    wrong = [
        name
        for name, one in report.items()
        if one["engine_empty_after_seconds"] > FREE_SECONDS
        or one["left_in_mid_stream"] != one["clients"]
        or one["usage_rows"] != one["clients"]
        or not 0 <= one["tokens_billed"] - one["tokens_that_came"] <= LEAVERS[name][1] * LATE_TOKENS * one["clients"]
    ]
    return {**report, "wrong": wrong}


async def streams(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """Streams side by side, each of 16 tokens."""
    await hear(ask(server, max_tokens=2))
    before, began = metered(server), time.monotonic()
    heard = await hear_all([ask(server, max_tokens=16) for _ in range(options.clients)], at_once=options.clients)
    seconds, now = time.monotonic() - began, metered(server)
    complete = sum(one.whole and one.tokens == 16 for one in heard)
    return {
        "streams": len(heard),
        "complete": complete,
        "seconds": round(seconds, 2),
        "tokens_a_second": round(16 * complete / seconds),
        "tokens_billed": now[1] - before[1],
        "ends": dict(Counter(f"{one.status} {one.error}" for one in heard if not one.whole)),
        "wrong": [] if complete == len(heard) and now[1] - before[1] == 16 * complete else ["streams"],
    }


async def limit(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """Requests at once under a limit, which is taken away again; the last minute must be an empty one."""
    api(server, "PUT", "/api/quotas", {"name": "requests_per_minute", "value": PER_MINUTE})
    asks = [
        replace(ask(server), body={**BODY, "model": MODEL, "max_tokens": 2, "stream": number % 2 == 0})
        for number in range(options.clients)
    ]
    began = time.monotonic()
    heard = await hear_all(asks, at_once=options.clients)
    seconds = time.monotonic() - began
    api(server, "PUT", "/api/quotas", {"name": "requests_per_minute", "value": None})
    refused = [one for one in heard if one.status == 429]
    waits = [int(one.headers.get("retry-after", "0")) for one in refused]
    right = sum(one.whole for one in heard) == min(PER_MINUTE, len(heard))
    right = right and len(refused) == len(heard) - PER_MINUTE and all(1 <= wait <= 60 for wait in waits)
    return {
        "requests": len(heard),
        "seconds": round(seconds, 2),
        "answered": sum(one.whole for one in heard),
        "refused": dict(Counter(f"{one.status} {one.error}" for one in heard if not one.whole)),
        "retry_after_seconds": [min(waits, default=0), max(waits, default=0)],
        "wrong": [] if right and seconds < 60 else ["limit"],
    }


async def engine(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """kill -9 of the engine, again and again."""
    load, back = Load(server, options.at_once), []
    async with load.running():
        for _ in range(options.kills):
            await load.answer_since(time.monotonic())
            for process in engines(server):
                process.kill()
            killed = time.monotonic()
            back.append(round(await load.answer_since(killed) - killed, 2))
    return _told(load, {"kills": options.kills, "seconds_until_an_answer": back}, back)


async def server_killed(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """kill -9 and Ctrl-C of the server by turns, and a new start. Engines of a killed server end by themselves."""
    load, back, before = Load(server, options.at_once), [], deployments(server)
    async with load.running():
        for number in range(options.restarts):
            await load.answer_since(time.monotonic())
            old = engines(server)
            await asyncio.to_thread(server.stop if number % 2 else server.kill)
            killed = time.monotonic()
            await asyncio.to_thread(server.start)
            back.append(round(await load.answer_since(killed) - killed, 2))
            gone = await asyncio.to_thread(psutil.wait_procs, old, 10)
            assert not gone[1], "an engine outlived its server"
    same = deployments(server) == before
    told = _told(load, {"restarts": options.restarts, "seconds_until_an_answer": back, "deployments_same": same}, back)
    return told if same else {**told, "wrong": [*told["wrong"], "deployments changed"]}


def deployments(server: ServerProcess) -> Any:
    """All deployments as the API tells them."""
    return api(server, "GET", "/api/deployments")["data"]


def _told(load: Load, report: dict[str, Any], back: list[float]) -> dict[str, Any]:
    ends = load.ends()
    wrong = [end for end in ends if end.startswith("WRONG")]
    wrong += [f"{seconds} s until an answer" for seconds in back if seconds > BACK_SECONDS]
    return {**report, "clients": load.clients, "requests": len(load.heard), "ends": ends, "wrong": wrong}


RUNS: dict[str, Callable[[ServerProcess, argparse.Namespace], Any]] = {
    "drops": drops,
    "streams": streams,
    "limit": limit,
    "engine": engine,
    "server": server_killed,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000, help="of drops, streams and limit")
    parser.add_argument("--at-once", type=int, default=64, help="clients at a time in drops and under blows")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {','.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, most), most))
    report: dict[str, Any] = {}
    for part in options.only.split(","):
        # Each part on a state of its own: the minute of a limit and the usage of others would be in the way.
        with tempfile.TemporaryDirectory(prefix="smedje-chaos-") as name:
            server = ServerProcess(server_home(Path(name)))
            server.start()
            try:
                api(server, "POST", "/api/deployments", {"name": DEPLOYMENT, "model": MODEL})
                report[part] = asyncio.run(RUNS[part](server, options))
            finally:
                server.stop()
        print(json.dumps({part: report[part]}, indent=1), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if any(one["wrong"] for one in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
