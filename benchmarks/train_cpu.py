"""LoRA fine-tuning on a CPU against peers: python benchmarks/train_cpu.py --json OUT [--workloads W1,W3] [--peers ...]

Every engine trains the same base model from the same initial adapter on the same token ids, in an environment of its
own that this script builds. A row counts only beside a passing guard: the per-step losses of the plain Hugging Face
loop. Rounds interleave the engines (A B A B); figures are medians of the steps after the first of each round.
Workloads follow log-normal chat lengths, 30 % labelled: W1 none shared, W2/W3/W4 a common system prompt of
120/400/1,000 tokens, W5 every token labelled, packed to 1,024.
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

ROOT = Path(__file__).resolve().parent
PEER_PACKAGES = (
    "trl==1.16.0",
    "transformers==5.23.0",
    "peft==0.21.2",
    "datasets==5.2.0",
    "accelerate==1.15.0",
    "torch==2.13.0",
)
SHARED = {"W1": 0, "W2": 120, "W3": 400, "W4": 1000, "W5": 0}
# name -> (runner, configuration). hf: plain transformers + peft loop; trl: SFTTrainer.
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "smedje": ("ours", {"share": True}),
    "smedje-unshared": ("ours", {"share": False}),
    "hf-loop": ("hf", {}),
    "trl-packed": ("trl", {"packing": True, "bf16": False, "checkpointing": False}),
    "trl-padded": ("trl", {"packing": False, "bf16": False, "checkpointing": False}),
    "trl-packed-bf16": ("trl", {"packing": True, "bf16": True, "checkpointing": False}),
    "trl-default": ("trl", {"packing": False, "bf16": True, "checkpointing": True}),
}


def rows_of(workload: str, count: int, *, seed: int = 1) -> list[dict[str, list[int]]]:
    """Token ids and labels (-100 where there is no loss) of `count` synthetic examples."""
    draw = random.Random(seed)
    shared = [draw.randrange(100, 40_000) for _ in range(SHARED[workload])]
    rows = []
    for _ in range(count):
        length = 1024 if workload == "W5" else max(24, min(1000, int(draw.lognormvariate(5.38, 0.6))))
        own = [draw.randrange(100, 40_000) for _ in range(length)]
        prompt = 0 if workload == "W5" else int(length * 0.7)
        labels = [-100] * (len(shared) + prompt) + own[prompt:]
        rows.append({"input_ids": shared + own, "labels": labels})
    return rows


def write_rows(work: Path, rows: list[dict[str, list[int]]]) -> None:
    """The rows, and for the peers the same rows in the order in which our loop will visit them."""
    from smedje.data.batches import epoch_order

    (work / "rows.json").write_text(json.dumps(rows))
    (work / "ordered.json").write_text(json.dumps([rows[i] for i in epoch_order(len(rows), seed=0, epoch=0)]))


def peak_gflops() -> float:
    """The machine's measured fp32 product rate with all cores, GFLOP/s: the yardstick beside every figure."""
    import torch

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    product = torch.ops.mkldnn._linear_pointwise
    product(a, b, None, "none", [], "")
    began = time.perf_counter()
    for _ in range(5):
        product(a, b, None, "none", [], "")
    return 5 * 2 * 2048**3 / (time.perf_counter() - began) / 1e9


def peer_python(folder: Path) -> Path:
    """The peers' own environment, made once."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEER_PACKAGES], check=True)
        (folder / "ready").write_text("ok")
    return python


def run(engine: str, work: Path, *, peers: Path, steps: int, batch: int) -> dict[str, Any]:
    """One round of one engine on the data in `work`: step seconds, losses, peak memory."""
    runner, options = ENGINES[engine]
    python = Path(sys.executable) if runner == "ours" else peer_python(peers)
    out = work / f"{engine}.json"
    out.unlink(missing_ok=True)
    settings = {"work": str(work), "steps": steps, "batch": batch, "out": str(out), **options}
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(os.cpu_count()),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    began = time.perf_counter()
    done = subprocess.run(
        [python, str(ROOT / f"train_cpu_{runner}.py"), json.dumps(settings)], env=env, capture_output=True, text=True
    )
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else "no output"}
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
        "peak_gb": round(max(r["peak_bytes"] for r in rounds) / 1e9, 2),
        "wall_seconds": round(statistics.median(r["wall_seconds"] for r in rounds), 1),
    }


def measure(workload: str, engines: list[str], work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All engines on one workload, interleaved. Every row is different: a repeated one would be shared by ours."""
    rows = rows_of(workload, arguments.batch * arguments.steps)
    write_rows(work, rows)
    rounds: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for number in range(arguments.rounds):
        for engine in engines:
            print(f"{workload} round {number + 1}: {engine}", file=sys.stderr, flush=True)
            rounds[engine].append(
                run(engine, work, peers=arguments.peers_folder, steps=arguments.steps, batch=arguments.batch)
            )
    tokens = sum(len(row["input_ids"]) for row in rows)
    return {"tokens": tokens, "engines": {name: figures(found) for name, found in rounds.items()}}


def guard(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Per-step losses of ours (shared and not) against the plain Hugging Face loop, 20 steps of ragged short rows."""
    rows = [{"input_ids": r["input_ids"][:160], "labels": r["labels"][:160]} for r in rows_of("W2", 4 * 20)]
    for row in rows:
        row["labels"][-20:] = row["input_ids"][-20:]
    write_rows(work, rows)
    found = {
        e: run(e, work, peers=arguments.peers_folder, steps=20, batch=4)
        for e in ("smedje", "smedje-unshared", "hf-loop")
    }
    if any("error" in r for r in found.values()):
        return {name: r.get("error") for name, r in found.items()}
    reference = found["hf-loop"]["losses"]

    def worst(name: str) -> float:
        return max(abs(a - b) for a, b in zip(found[name]["losses"], reference, strict=True))

    return {"largest_loss_difference": {name: worst(name) for name in ("smedje", "smedje-unshared")}, "limit": 1e-4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="an installed base model's folder")
    parser.add_argument("--workloads", default="W1,W3,W5")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers-folder", type=Path, default=Path(tempfile.gettempdir()) / "smedje-bench-peers")
    parser.add_argument("--skip-guard", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smedje-bench-") as scratch:
        work = Path(scratch)
        (work / "base").symlink_to(arguments.base.resolve())
        report: dict[str, Any] = {"peak_gflops": round(peak_gflops()), "load_before": os.getloadavg()[0]}
        report["guard"] = None if arguments.skip_guard else guard(work, arguments)
        report["workloads"] = {
            workload: measure(workload, arguments.engines.split(","), work, arguments)
            for workload in arguments.workloads.split(",")
        }
        report["load_after"] = os.getloadavg()[0]
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
