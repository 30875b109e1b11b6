"""LoRA fine-tuning on a CPU against peers: python benchmarks/train_cpu.py --json OUT --base FOLDER [--workloads W1,W3]

Every engine trains the same base model from the same initial adapter on the same token ids, 16 examples a step, in an
environment of its own that this script makes on first use. Rounds interleave the engines (A B A B); a figure is the
median of the steps after the first of each round. Results add up in OUT over invocations, and a picture lies beside it;
an invocation starts nothing that would not end within --seconds. A row counts only beside a passing guard
(`--guard FOLDER,...`): losses and adapter gradients of 20 steps against the plain transformers and PEFT loop, for each
base model named; with LLaMA-Factory among --engines also the loss of its first step. Workloads: train_cpu_rows.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_cpu_guard import checked
from train_cpu_peak import gflops
from train_cpu_plot import plot
from train_cpu_rows import ROWS_OF_W7, rows_of, write_rows

ROOT = Path(__file__).resolve().parent
HUGGING_FACE = ("trl==1.16.0", "transformers==5.23.0", "peft==0.21.2", "datasets==5.2.0", "accelerate==1.15.0")
# What LLaMA-Factory 0.9.5 allows at most, and what its training of text imports.
FACTORY = ("trl==0.24.0", "transformers==5.6.0", "peft==0.18.1", "datasets==4.0.0", "accelerate==1.11.0")
FACTORY_USES = (
    *("einops", "fastapi", "fire", "omegaconf", "protobuf", "scipy", "sentencepiece", "sse-starlette", "tiktoken"),
    *("tyro<0.9", "uvicorn"),
)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What is installed for a peer. alone: packages without what they ask for. stand_ins: modules that are imported but
    never called for rows of text, and do not start without CUDA: empty ones take their names."""

    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()


ENVIRONMENTS = {
    "peers": Environment(packages=(*HUGGING_FACE, "torch==2.13.0")),
    "litgpt": Environment(packages=("litgpt==0.5.13", "torch==2.13.0")),
    "llamafactory": Environment(
        packages=(*FACTORY, *FACTORY_USES, "torch==2.13.0"),
        alone=("llamafactory==0.9.5",),
        stand_ins=("torchaudio",),
    ),
}
PLAIN = {"bf16": False, "checkpointing": False}
# name -> (runner, environment, configuration). hf: plain transformers + peft loop; trl: SFTTrainer; litgpt: its
# model and loss; llamafactory: its own run.
ENGINES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "smedje": ("ours", None, {"share": True, "precision": "fp32"}),
    "smedje-bf16": ("ours", None, {"share": True, "precision": "bf16"}),
    # Streams half as long, for less memory where much is shared.
    "smedje-narrow-bf16": ("ours", None, {"share": True, "precision": "bf16", "stream_tokens": 4096}),
    "smedje-unshared": ("ours", None, {"share": False, "precision": "fp32"}),
    "trl-packed": ("trl", "peers", {"packing": True, **PLAIN}),
    "trl-packed-bf16": ("trl", "peers", {"packing": True, **PLAIN, "bf16": True}),
    "trl-padded": ("trl", "peers", {"packing": False, **PLAIN}),
    "trl-padded-bf16": ("trl", "peers", {"packing": False, **PLAIN, "bf16": True}),
    "trl-grouped-bf16": ("trl", "peers", {"packing": False, "grouped": True, **PLAIN, "bf16": True}),
    "trl-default": ("trl", "peers", {"packing": False, "bf16": True, "checkpointing": True}),
    "hf-loop": ("hf", "peers", {"bf16": False}),
    "hf-loop-bf16": ("hf", "peers", {"bf16": True}),
    "litgpt": ("litgpt", "litgpt", {"bf16": False}),
    "litgpt-bf16": ("litgpt", "litgpt", {"bf16": True}),
    "llamafactory-bf16": ("llamafactory", "llamafactory", {"form": "ordered"}),
    "llamafactory-grouped-bf16": ("llamafactory", "llamafactory", {"form": "grouped"}),
    "llamafactory-packed-bf16": ("llamafactory", "llamafactory", {"form": "packed"}),
}
USUAL = "smedje,smedje-bf16,trl-packed,trl-packed-bf16"


def peer_python(folder: Path, environment: Environment = ENVIRONMENTS["peers"]) -> Path:
    """An environment of the peers' own, made once."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [python, "-m", "pip", "install", "-q"]
        subprocess.run([*install, *environment.packages], check=True)
        if environment.alone:
            subprocess.run([*install, "--no-deps", *environment.alone], check=True)
        site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        for name in environment.stand_ins:
            (site / f"{name}.py").write_text('"""Empty, in place of a package that is not called here."""\n')
        (folder / "ready").write_text("ok")
    return python


def run(engine: str, work: Path, arguments: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """One round of one engine on the data in `work`: step seconds, losses, peak memory, and the whole wall time."""
    runner, environment, options = ENGINES[engine]
    folder = Path(f"{arguments.environments}-{environment}")
    python = Path(sys.executable) if environment is None else peer_python(folder, ENVIRONMENTS[environment])
    out = work / f"{engine}.json"
    out.unlink(missing_ok=True)
    settings = {"work": str(work), "out": str(out), "batch": arguments.batch, **options, **more}
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(os.cpu_count()),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if environment is None:
        from smedje.executors.base import worker_environment

        # As the product starts its own workers.
        env |= worker_environment({}, objects_url="file:///")
    began = time.perf_counter()
    command = [python, str(ROOT / f"train_cpu_{runner}.py"), json.dumps(settings)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        # -9 is what a machine short of memory ends it with; the last line then says nothing of that.
        last = done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else "no output"
        return {"error": f"exit status {done.returncode}: {last}"}
    return {**json.loads(out.read_text()), "wall_seconds": time.perf_counter() - began}


def figures(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median real tokens a second over the later steps of all rounds, with the range, and the peak memory."""
    failed = [r["error"] for r in rounds if "error" in r]
    if failed:
        return {"error": failed[0]}
    rate = [t / s for r in rounds for t, s in zip(r["tokens"][1:], r["seconds"][1:], strict=True)]
    return {
        "tokens_per_second": round(statistics.median(rate), 1),
        "range": [round(min(rate), 1), round(max(rate), 1)],
        "steps": len(rate),
        "peak_gb": round(max(r["peak_bytes"] for r in rounds) / 1e9, 2),
        "wall_seconds": round(statistics.median(r["wall_seconds"] for r in rounds), 1),
        "useful_gflops": round(statistics.median(x * r["gigaflop_per_token"] for r in rounds for x in rate), 1)
        if "gigaflop_per_token" in rounds[0]
        else None,
    }


def measure(workload: str, report: dict[str, Any], work: Path, arguments: argparse.Namespace) -> None:
    """Engines on one workload, interleaved, added to the report. Every row is different: ours would share repeats."""
    steps = -(-ROWS_OF_W7 // arguments.batch) if workload == "W7" else arguments.steps
    rows = rows_of(workload, ROWS_OF_W7 if workload == "W7" else arguments.batch * steps)
    write_rows(work, rows)
    found = report["workloads"].setdefault(workload, {})
    for number in range(arguments.rounds):
        for engine in arguments.engines.split(","):
            entry = found.setdefault(engine, {"rounds": []})
            took = max((r.get("wall_seconds", 0.0) for r in entry["rounds"]), default=0.0)
            if time.monotonic() + took > arguments.until:
                print(f"{workload}: no time left for {engine}", file=sys.stderr, flush=True)
                continue
            print(f"{workload} round {number + 1}: {engine}", file=sys.stderr, flush=True)
            entry["rounds"].append(run(engine, work, arguments, steps=steps))
            entry["figures"] = figures(entry["rounds"])
            arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def made_to_start(engines: list[str]) -> dict[str, str]:
    """Of the engines whose environment has empty modules in it: in place of what."""
    environments = {engine: ENVIRONMENTS[name] for engine in engines if (name := ENGINES[engine][1])}
    return {
        engine: f"its own code unchanged, started with an empty module in place of {', '.join(found.stand_ins)}"
        for engine, found in environments.items()
        if found.stand_ins
    }


def table(report: dict[str, Any]) -> str:
    """The figures as text: tokens a second, ratio to the best peer's, share of the fp32 peak, memory, wall time."""
    lines = [f"{'':4} {'engine':25} {'tok/s':>8} {'x peer':>7} {'% peak':>7} {'GB':>6} {'wall s':>8}"]
    for workload, engines in sorted(report["workloads"].items()):
        known = {name: e["figures"] for name, e in engines.items() if "error" not in e.get("figures", {"error": 1})}
        peers = [f["tokens_per_second"] for name, f in known.items() if not name.startswith("smedje")]
        for name, f in known.items():
            ratio = f"{f['tokens_per_second'] / max(peers):.2f}" if peers else ""
            share = f"{100 * f['useful_gflops'] / report['peak_gflops']['fp32']:.0f}" if f["useful_gflops"] else ""
            line = f"{workload:4} {name:25} {f['tokens_per_second']:8} {ratio:>7} {share:>7}"
            lines.append(f"{line} {f['peak_gb']:6} {f['wall_seconds']:8}")
    lines += [f"{engines}: {how}" for engines, how in report.get("made_to_start", {}).items()]
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="an installed base model's folder")
    parser.add_argument("--workloads", default="W1", help="some of W1 to W7")
    parser.add_argument("--engines", default=USUAL, help=f"some of {', '.join(ENGINES)}")
    parser.add_argument("--guard", default=None, help="only the guard, for these base models' folders")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=500.0, help="start nothing that would end later")
    usual = Path(tempfile.gettempdir()) / "smedje-bench"
    parser.add_argument("--environments", type=Path, default=usual, help="where peers are installed, NAME-peers")
    arguments = parser.parse_args()
    arguments.until = time.monotonic() + arguments.seconds
    return arguments


def main() -> None:
    arguments = parsed()
    report: dict[str, Any] = {"guard": {}, "workloads": {}}
    if arguments.json.exists():
        report = json.loads(arguments.json.read_text())
    report["peak_gflops"] = {precision: round(gflops(precision), 1) for precision in ("fp32", "bf16")}
    engines = arguments.engines.split(",")
    report["made_to_start"] = report.get("made_to_start", {}) | made_to_start(engines)
    factory = [engine for engine in engines if ENGINES[engine][0] == "llamafactory"]
    report.setdefault("load_before", []).append(round(os.getloadavg()[0], 2))
    with tempfile.TemporaryDirectory(prefix="smedje-bench-") as scratch:
        for number, base in enumerate((arguments.guard or "").split(",") if arguments.guard else ()):
            work = Path(scratch) / f"guard{number}"
            work.mkdir()
            (work / "base").symlink_to(Path(base).resolve())
            of_guard = checked(lambda e, w=work, **o: run(e, w, arguments, **o), work, others=factory)
            report["guard"][Path(base).name] = of_guard
            arguments.json.write_text(json.dumps(report, indent=2) + "\n")
        for workload in arguments.workloads.split(",") if not arguments.guard else ():
            work = Path(scratch) / workload
            work.mkdir()
            (work / "base").symlink_to(arguments.base.resolve())
            measure(workload, report, work, arguments)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    arguments.json.with_suffix(".svg").write_text(plot(report["workloads"]))
    print(json.dumps({"peak_gflops": report["peak_gflops"], "guard": report["guard"]}, indent=2))
    print(table(report))


if __name__ == "__main__":
    main()
