"""Serving on a CPU against peers: python benchmarks/serve_cpu.py --json OUT --base FOLDER [--engines A,B] [--clients 1]

Servers are asked by the same clients over HTTP: prompts of about 128 tokens, 128 tokens out, greedy, streamed, one
after another for --seconds; on the base model, one adapter, eight adapters in turn, and behind a common system prompt
of about 400 tokens. Engines, each in an environment of its own that is made on first use:

  smedje        our server; also a first token of a cold adapter and behind a cold prompt against warm ones
  smedje-bf16, smedje-int8   the same with weights in bf16 and in eight bits
  inside        our engine alone: decode steps with no, one and eight adapters, interleaved
  inside-bf16, inside-int8   the same with weights in bf16 and in eight bits
  transformers  `transformers serve`, which knows no adapters
  peft          transformers + peft generating a batch at a time, mixed adapters by `adapter_names`
  llama         llama.cpp (cyllama), one completion alone, Q8_0 made from the GGUF file that our export writes
  vllm, vllm-bf16   vLLM's CPU build with LoRA; it takes minutes to start: an invocation of its own
  guard         no engine: our greedy tokens and log probabilities against transformers' own loop

Results add up in OUT over invocations; nothing is started that would begin after --until seconds. Run it on an idle
machine; a figure counts only beside a passing guard.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from serve_cpu_load import cold_and_warm, measured, workloads
from serve_cpu_servers import SERVERS, environment, running, write_adapters

from smedje.wiring import ENGINE_SPINS

ROOT = Path(__file__).resolve().parent
USUAL = "guard,inside,inside-bf16,inside-int8,smedje,smedje-bf16,llama,peft,transformers"
ADAPTERS = 8
AS_OUR_ENGINE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(ENGINE_SPINS)}
SPINNING = {"OMP_WAIT_POLICY": "ACTIVE"}


def main() -> None:
    options = parsed()
    report: dict[str, Any] = {"load_before": []}
    if options.json.exists():
        report = json.loads(options.json.read_text())
    report["load_before"].append(round(os.getloadavg()[0], 2))
    with tempfile.TemporaryDirectory(prefix="smedje-serve-run-") as name:
        scratch = Path(name)
        for engine in options.engines.split(","):
            if time.monotonic() > options.end:
                print(f"no time left for {engine}", file=sys.stderr)
                continue
            print(f"{time.strftime('%H:%M:%S')} {engine}", file=sys.stderr, flush=True)
            try:
                run(engine, report.setdefault(engine, {}), scratch, options)
                report[engine].pop("error", None)
            except (RuntimeError, OSError) as error:
                report[engine]["error"] = str(error)[-400:]
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def run(engine: str, found: dict[str, Any], scratch: Path, options: argparse.Namespace) -> None:
    """Measure one engine into its part of the report."""
    if engine in SERVERS:
        serve(engine, found, scratch, options)
        return
    if engine.startswith("inside"):
        found |= inside(scratch, options, numbers=engine.partition("-")[2] or "fp32")
        return
    found |= {"guard": guard, "peft": peft, "llama": llama}[engine](scratch, options)


def serve(engine: str, found: dict[str, Any], scratch: Path, options: argparse.Namespace) -> None:
    """A server under each workload and number of clients."""
    wanted = options.workloads.split(",")
    with running(engine, options.base, scratch / engine, ADAPTERS) as server:
        if engine.startswith("smedje"):
            found["first_token"] = cold_and_warm(server)
        for name, workload in workloads(server, options.tokens).items():
            for clients in options.clients if name in wanted else ():
                seen = measured(server, workload, clients=clients, seconds=options.seconds)
                found.setdefault(name, {})[str(clients)] = seen
                print(f"  {name} x{clients}: {seen}", file=sys.stderr, flush=True)


def guard(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Greedy tokens and log probabilities against transformers'."""
    asked = {"prompts": options.prompts, "tokens": 16, "adapters": str(adapters(scratch, options))}
    return child([sys.executable, str(ROOT / "serve_cpu_guard.py")], asked, options, AS_OUR_ENGINE)


def inside(scratch: Path, options: argparse.Namespace, *, numbers: str) -> dict[str, Any]:
    """Our engine without HTTP."""
    asked: dict[str, Any] = {
        "numbers": numbers,
        "adapters": str(adapters(scratch, options)),
        "count": ADAPTERS,
        "rounds": 3,
        "tokens": options.tokens // 4,
    }
    return child([sys.executable, str(ROOT / "serve_cpu_inside.py")], asked, options, AS_OUR_ENGINE)


def peft(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """transformers + peft, a batch at a time."""
    folder = adapters(scratch, options)
    draw = random.Random(3)
    prompts = [draw.choices(range(100, 40_000), k=128) for _ in range(16)]
    asked = {
        "adapters": [str(folder / f"adapter-{number}") for number in range(ADAPTERS)],
        "batches": [count for count in options.clients if count <= 16],
        "prompts": prompts,
        "tokens": options.tokens // 2,
    }
    return child([str(environment("hf") / "python"), str(ROOT / "serve_cpu_peft.py")], asked, options, SPINNING)


def llama(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """llama.cpp on the file that our export writes."""
    from smedje.modeling.export_gguf import write_gguf

    python = environment("llama") / "python"
    write_gguf(options.base, scratch / "f16.gguf", half=True, name="benchmark")
    prompt = random.Random(3).choices(range(100, 40_000), k=128)
    asked: dict[str, Any] = {
        "gguf": str(scratch / "f16.gguf"),
        "q8": str(scratch / "q8.gguf"),
        "prompt": prompt,
        "rounds": 3,
    }
    asked["tokens"] = options.tokens
    # Its threads wait for each other hundreds of times a token: on an idle machine it is faster when they spin.
    return child([str(python), str(ROOT / "serve_cpu_llama.py")], asked, options, SPINNING)


def adapters(scratch: Path, options: argparse.Namespace) -> Path:
    """A folder with random adapters, written once a run."""
    folder = scratch / "adapters"
    if not folder.exists():
        write_adapters(options.base, folder, ADAPTERS, plain=True)
    return folder


def child(
    command: list[str], asked: dict[str, Any], options: argparse.Namespace, waiting: dict[str, str]
) -> dict[str, Any]:
    """The JSON that a program of ours or of a peer prints last. Raises RuntimeError with its last line of errors.

    waiting: how its threads wait for each other.
    """
    threads = os.cpu_count()
    settings = {"base": str(options.base.resolve()), "threads": threads, **asked}
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), **waiting, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, json.dumps(settings)], env=env, capture_output=True, text=True, timeout=400)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {json.dumps(told)}", file=sys.stderr, flush=True)
    return told


def table(report: dict[str, Any]) -> str:
    """The figures as text: servers first, then the others as they are."""
    lines = [f"{'engine':13} {'workload':9} {'clients':>7} {'tok/s':>8} {'first ms':>9} {'between':>8} {'MB':>6}"]
    for engine in SERVERS:
        for name in ("base", "one", "adapters", "shared"):
            for clients, seen in report.get(engine, {}).get(name, {}).items():
                row = f"{engine:13} {name:9} {clients:>7} {seen['tokens_per_second']:8} {seen['first_token_ms']!s:>9}"
                lines.append(f"{row} {seen['between_tokens_ms']!s:>8} {seen['memory_mb']:6}")
    for engine, found in report.items():
        if engine not in (*SERVERS, "load_before"):
            lines.append(f"{engine}: {json.dumps(found)}")
        elif engine in SERVERS:
            rest = {key: value for key, value in found.items() if key in ("first_token", "error")}
            lines += [f"{engine}: {json.dumps(rest)}"] if rest else []
    return "\n".join(lines + [f"{name}: {value}" for name, value in verdicts(report).items()])


def verdicts(report: dict[str, Any]) -> dict[str, str]:
    """What the figures amount to, each beside what is aimed at; only what was measured."""
    crowd = {name: report.get(name, {}).get("adapters", {}).get("16", {}).get("tokens_per_second") for name in SERVERS}
    inside, first = report.get("inside", {}), report.get("smedje", {}).get("first_token", {})
    lone = [one["tokens_per_second"] for one in report.get("llama", {}).get("rounds", [])]
    found = {}
    if crowd["smedje"]:
        found["16 clients, 8 adapters"] = f"{crowd['smedje']} tokens/s (300)"
    for numbers in ("", "-bf16"):
        if crowd[f"smedje{numbers}"] and crowd[f"vllm{numbers}"]:
            ratio = crowd[f"smedje{numbers}"] / crowd[f"vllm{numbers}"]
            found[f"against vLLM with LoRA{numbers}"] = f"{ratio:.2f}x (1.3x)"
    if "alone" in inside and lone:
        found["alone against llama.cpp Q8_0"] = f"{inside['alone'] / statistics.median(lone):.2f}x"
    if "alone" in report.get("inside-int8", {}) and lone:
        eight = report["inside-int8"]["alone"] / statistics.median(lone)
        found["alone in eight bits against llama.cpp Q8_0"] = f"{eight:.2f}x (0.7x)"
    if "adapters" in inside:
        found["eight adapters slower than one"] = f"{inside['mixed_slower_percent']} % (15 %)"
    if first:
        found["first token of a new adapter"] = f"{first['adapter_cold_ms']} ms (100 ms)"
        found["first token behind a known prompt"] = f"{first['shared_cold_ms'] / first['shared_warm_ms']:.1f}x (5x)"
    for name, one in report.get("guard", {}).items():
        if isinstance(one, dict):
            equal = f"{one['equal']} of {one['prompts']} answers equal"
            found[f"guard, {name}"] = (
                f"{equal}, log probabilities within {one['largest_logprob_difference']:.1e} (1e-3)"
            )
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="folder of an installed base model")
    parser.add_argument("--engines", default=USUAL, help="some of those above, with commas")
    parser.add_argument("--clients", default="1,4,16", help="numbers of clients")
    parser.add_argument("--workloads", default="base,one,adapters,shared")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a completion")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each number of clients asks")
    parser.add_argument("--prompts", type=int, default=64, help="prompts of the guard")
    parser.add_argument("--until", type=float, default=500.0, help="seconds after which no further engine is started")
    options = parser.parse_args()
    options.clients = [int(count) for count in options.clients.split(",")]
    options.end = time.monotonic() + options.until
    return options


if __name__ == "__main__":
    main()
