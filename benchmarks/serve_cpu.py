"""Serving on the CPU: python benchmarks/serve_cpu.py --base FOLDER [--peer ours] [--clients 1 4 16 64]

Each client asks one completion after another over HTTP, streamed, greedy, 128 tokens out; prompts have about 128
tokens, with --shared behind a common system prompt of about 400. With --adapters N the clients use N random LoRA
adapters in turn. Told: tokens a second of all clients, time to first token, time between tokens, memory of the server.

ours starts `smedje serve` in a state folder of its own. transformers and vllm are started from another environment,
given with --python; url measures any server that is running. A peer runs alone on an idle machine, or it has no figure.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

KEY = "smedje_benchmark-benchmark-benchmark-benchmark"
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


@dataclass
class Measured:
    """What the clients of one round saw."""

    tokens: int = 0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of an installed base model")
    parser.add_argument("--peer", choices=("ours", "transformers", "vllm", "url"), default="ours")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the peer's environment")
    parser.add_argument("--url", help="base URL of a running server (…/v1), for --peer url")
    parser.add_argument("--models", nargs="*", default=[], help="model names to use in turn, for --peer url")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--adapters", type=int, default=0)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--out", type=int, default=128, help="tokens of a completion")
    parser.add_argument("--rounds", type=int, default=2, help="completions of each client")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smedje-bench-") as scratch, serve(options, Path(scratch)) as running:
        url, models, process = running
        asyncio.run(load(url, models, options, clients=1, rounds=1))  # wakes the engine
        found = []
        for clients in options.clients:
            seen = asyncio.run(load(url, models, options, clients=clients, rounds=options.rounds))
            found.append(told(seen, clients, process, options))
            print(json.dumps(found[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def told(seen: Measured, clients: int, process: psutil.Process | None, options: argparse.Namespace) -> dict[str, Any]:
    """One line of the result; times in milliseconds."""
    line: dict[str, Any] = {
        "peer": options.peer,
        "clients": clients,
        "adapters": options.adapters,
        "shared": options.shared,
        "tokens_per_second": round(seen.tokens / seen.seconds, 1),
        "first_token_ms": round(1000 * statistics.median(seen.first), 1),
        "between_tokens_ms": round(1000 * statistics.median(seen.between), 1) if seen.between else None,
    }
    if process is not None:
        family = [process, *process.children(recursive=True)]
        line["memory_mb"] = round(sum(one.memory_info().rss for one in family) / 2**20)
    return line


def prompt(draw: random.Random, options: argparse.Namespace) -> list[dict[str, str]]:
    """Messages of about 128 tokens, behind about 400 common ones with --shared."""
    user = {"role": "user", "content": " ".join(draw.choices(WORDS, k=115))}
    if not options.shared:
        return [user]
    return [{"role": "system", "content": " ".join(random.Random(0).choices(WORDS, k=395))}, user]


async def load(url: str, models: list[str], options: argparse.Namespace, *, clients: int, rounds: int) -> Measured:
    """Let the clients ask side by side."""
    seen = Measured()
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=600) as http:
        begun = time.perf_counter()
        await asyncio.gather(*(client(http, models, options, seen, number, rounds) for number in range(clients)))
        seen.seconds = time.perf_counter() - begun
    return seen


async def client(
    http: httpx2.AsyncClient, models: list[str], options: argparse.Namespace, seen: Measured, number: int, rounds: int
) -> None:
    draw = random.Random(1000 * number + rounds)
    for turn in range(rounds):
        body = {
            "model": models[(number + turn) % len(models)],
            "messages": prompt(draw, options),
            "max_tokens": options.out,
            "temperature": 0,
            "stream": True,
        }
        asked, last = time.perf_counter(), 0.0
        async with http.stream("POST", "/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise SystemExit((await answer.aread()).decode())
            async for line in answer.aiter_lines():
                if not line.startswith("data: {") or not has_text(json.loads(line[6:])):
                    continue
                now = time.perf_counter()
                seen.tokens += 1
                seen.first.append(now - asked) if not last else seen.between.append(now - last)
                last = now


def has_text(chunk: dict[str, Any]) -> bool:
    """Whether a chunk brings text; servers send a chunk for each token whose characters are whole."""
    return any((choice.get("delta") or {}).get("content") for choice in chunk.get("choices") or [])


@contextmanager
def serve(options: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, list[str], psutil.Process | None]]:
    """The peer, running: its base URL, the model names to ask for, and its process."""
    if options.peer == "url":
        yield options.url, options.models, None
        return
    port = free_port()
    start = {"ours": ours, "transformers": transformers, "vllm": vllm}[options.peer]
    command, env, models = start(options, scratch, port)
    env |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **env}, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(port, process, scratch / "log")
            yield f"http://127.0.0.1:{port}/v1", models, psutil.Process(process.pid)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def ours(options: argparse.Namespace, scratch: Path, port: int) -> tuple[list[str], dict[str, str], list[str]]:
    """`smedje serve` with random adapters as fine-tuned models."""
    home = scratch / "home"
    name = options.base.name
    (home / "models").mkdir(parents=True)
    (home / "models" / name).symlink_to(options.base.resolve())
    env = {"SMEDJE_HOME": str(home), "SMEDJE_BOOTSTRAP_API_KEY": KEY, "SMEDJE_THREADS": str(options.threads)}
    if options.adapters:
        plant = [sys.executable, __file__.replace("serve_cpu.py", "serve_cpu_adapters.py")]
        subprocess.run(
            [*plant, str(options.base), str(home), str(options.adapters)], env={**os.environ, **env}, check=True
        )
    models = [f"adapter-{number}" for number in range(options.adapters)] or [name]
    return [sys.executable, "-m", "smedje.cli", "serve", "--port", str(port)], env, models


def transformers(options: argparse.Namespace, scratch: Path, port: int) -> tuple[list[str], dict[str, str], list[str]]:
    """`transformers serve`, which knows no adapters."""
    if options.adapters:
        raise SystemExit("transformers serve has no adapters; run it with --adapters 0")
    program = Path(options.python).with_name("transformers")
    return [str(program), "serve", "--port", str(port)], {}, [str(options.base)]


def vllm(options: argparse.Namespace, scratch: Path, port: int) -> tuple[list[str], dict[str, str], list[str]]:
    """vLLM's CPU build, adapters loaded at the start."""
    command = [str(Path(options.python).with_name("vllm")), "serve", str(options.base), "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "2048", "--served-model-name", "base"]
    if not options.adapters:
        return command, {}, ["base"]
    plant = [sys.executable, __file__.replace("serve_cpu.py", "serve_cpu_adapters.py")]
    subprocess.run([*plant, str(options.base), str(scratch / "adapters"), str(options.adapters), "--plain"], check=True)
    names = [f"adapter-{number}" for number in range(options.adapters)]
    command += ["--enable-lora", "--max-loras", str(options.adapters), "--max-lora-rank", "16", "--lora-modules"]
    return [*command, *(f"{name}={scratch / 'adapters' / name}" for name in names)], {}, names


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the server takes connections, at most ten minutes."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit(f"the server did not start:\n{log.read_text(errors='replace')[-2000:]}")


if __name__ == "__main__":
    main()
