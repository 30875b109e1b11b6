"""The clients of benchmarks/serve_cpu.py: what they ask over HTTP, for how long, and what they saw.

Knows OpenAI's chat route alone, so every server is asked the same. Each client asks one completion after another,
streamed and greedy, until the time is up; what runs then may go on for as long again, for its first token's sake, and
is dropped after it. Tokens that come later are not counted.
"""

import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import psutil

KEY = "smedje_benchmark-benchmark-benchmark-benchmark"
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
PROMPT_WORDS = 115  # with the template's own tokens about 128
SYSTEM_WORDS = 395


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server: its base URL (…/v1), the base model's and the adapters' names there, and its process."""

    url: str
    base: str
    adapters: tuple[str, ...]
    process: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """models: names that clients use in turn. shared: whether a system prompt of about 400 tokens comes first."""

    models: tuple[str, ...]
    shared: bool = False
    tokens: int = 128


@dataclass
class Seen:
    """Moments at which tokens came, seconds to each first token and between tokens, and how many completions ended."""

    moments: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    completions: int = 0


def workloads(server: Server, tokens: int) -> dict[str, Workload]:
    """By name: the base model, one adapter, all adapters, the base model behind a shared prompt."""
    found = {"base": Workload(models=(server.base,), tokens=tokens)}
    if server.adapters:
        found["one"] = Workload(models=server.adapters[:1], tokens=tokens)
        found["adapters"] = Workload(models=server.adapters, tokens=tokens)
    return {**found, "shared": Workload(models=(server.base,), shared=True, tokens=tokens)}


def measured(server: Server, workload: Workload, *, clients: int, seconds: float) -> dict[str, Any]:
    """Tokens a second of all clients together, medians in milliseconds, memory of the server's processes."""
    # The engine is awake from here on.
    asyncio.run(_ask_all(server, replace(workload, tokens=4), clients=1, until=0.0, patience=600.0))
    began = time.perf_counter()
    seen = asyncio.run(_ask_all(server, workload, clients=clients, until=began + seconds, patience=seconds))
    return {
        "tokens_per_second": round(sum(moment <= began + seconds for moment in seen.moments) / seconds, 1),
        "first_token_ms": _median_ms(seen.first),
        "between_tokens_ms": _median_ms(seen.between),
        "completions": seen.completions,
        "memory_mb": memory_mb(server.process),
    }


def cold_and_warm(server: Server) -> dict[str, Any]:
    """Milliseconds to a first token: of each adapter when it was never asked before and again, and of a question behind
    system prompts of about 400 tokens when each is new and again."""
    short = [{"role": "user", "content": "Which words come most?"}]
    loads = {turn: [_first(server, name, short) for name in server.adapters] for turn in ("cold", "warm")}
    prompts: dict[str, list[float]] = {"cold": [], "warm": []}
    for seed in range(1, 6):
        system = {"role": "system", "content": " ".join(random.Random(seed).choices(WORDS, k=SYSTEM_WORDS))}
        prompts["cold"].append(_first(server, server.base, [system, *short]))
        again = {"role": "user", "content": f"Which word is number {seed}?"}
        prompts["warm"].append(_first(server, server.base, [system, again]))
    return {
        "adapter_cold_ms": _median_ms(loads["cold"]),
        "adapter_warm_ms": _median_ms(loads["warm"]),
        "shared_cold_ms": _median_ms(prompts["cold"]),
        "shared_warm_ms": _median_ms(prompts["warm"]),
    }


def memory_mb(process: int) -> int:
    """Memory of a process and its children; pages that they share count in part."""
    root = psutil.Process(process)
    return int(sum(one.memory_full_info().pss for one in [root, *root.children(recursive=True)]) / 2**20)


def _first(server: Server, model: str, messages: Sequence[dict[str, str]]) -> float:
    seen = Seen()

    async def ask() -> None:
        async with _http(server) as http:
            await _completion(http, {"model": model, "messages": list(messages), "max_tokens": 2}, seen)

    asyncio.run(ask())
    return seen.first[0] if seen.first else float("nan")


async def _ask_all(server: Server, workload: Workload, *, clients: int, until: float, patience: float) -> Seen:
    seen = Seen()
    async with _http(server) as http:
        asking = [asyncio.create_task(_client(http, workload, seen, number, until)) for number in range(clients)]
        left = max(0.0, until - time.perf_counter()) + patience
        done, running = await asyncio.wait(asking, timeout=left)
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for one in done:
            one.result()
    return seen


async def _client(http: httpx2.AsyncClient, workload: Workload, seen: Seen, number: int, until: float) -> None:
    for turn in itertools.count():
        model = workload.models[(number + turn) % len(workload.models)]
        messages = _messages(random.Random(f"{number} {turn} {until}"), workload)
        await _completion(http, {"model": model, "messages": messages, "max_tokens": workload.tokens}, seen)
        seen.completions += 1
        if time.perf_counter() > until:
            return


def _messages(draw: random.Random, workload: Workload) -> list[dict[str, str]]:
    user = {"role": "user", "content": " ".join(draw.choices(WORDS, k=PROMPT_WORDS))}
    if not workload.shared:
        return [user]
    return [{"role": "system", "content": " ".join(random.Random(0).choices(WORDS, k=SYSTEM_WORDS))}, user]


def _http(server: Server) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=600)


async def _completion(http: httpx2.AsyncClient, asked: dict[str, Any], seen: Seen) -> None:
    """One completion. Servers send a chunk for each token whose characters are whole, so chunks are counted."""
    began, last = time.perf_counter(), 0.0
    async with http.stream("POST", "/chat/completions", json={"temperature": 0, "stream": True, **asked}) as answer:
        if answer.status_code != 200:
            raise RuntimeError((await answer.aread()).decode(errors="replace")[:300])
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and _has_text(json.loads(line[6:])):
                now = time.perf_counter()
                seen.moments.append(now)
                seen.between.append(now - last) if last else seen.first.append(now - began)
                last = now


def _has_text(chunk: dict[str, Any]) -> bool:
    return any((choice.get("delta") or {}).get("content") for choice in chunk.get("choices") or [])


def _median_ms(seconds: Sequence[float]) -> float | None:
    return round(1000 * statistics.median(seconds), 1) if seconds else None
