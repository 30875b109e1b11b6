"""LoRA fine-tuning on one GPU against peers, in one command: python benchmarks/train_gpu.py --json OUT [--cases G1,W1]

First the ceiling: the four matrix products of a Phi-3-mini layer in bf16. Then the guard: gradients of our bf16 step
and of Hugging Face's own against one fp32 reference. Then every engine on every case in a process of its own, the same
random weights, rows and initial adapter for all; the rate is over all steps but the first three, device included.
Cases: G1 and G2 dense rows of 4,096 and 2,048 tokens; W1 chat lengths, W3 the same after a common prompt of 400 tokens;
G4 a 135M model. All fit in ten minutes on an H100 (`--seconds` bounds the whole). `--device cpu --size tiny` tries the
scripts without a GPU and says nothing of speed. Peers: benchmarks/train_gpu_peers.txt names their packages; an engine
whose package is missing is reported as missing.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
DROPPED = 3
# name -> (model, tokens in a step, dense length or None for chat lengths, shared prompt)
CASES: dict[str, tuple[str, int, int | None, int]] = {
    "G1": ("phi3", 16_384, 4096, 0),
    "G2": ("phi3", 16_384, 2048, 0),
    "W1": ("phi3", 16_384, None, 0),
    "W3": ("phi3", 16_384, None, 400),
    "G4": ("smollm2", 8_192, 1024, 0),
}
# Peers' hand-written paths know Llama, so the peer model is a Llama with Phi-3-mini's sizes: the same products.
SIZES: dict[str, dict[str, int]] = {
    "phi3": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32_064,
    },
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}
# name -> (script, options); what each option means stands in the script.
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "smedje": ("ours", {"share": True}),
    "smedje-unshared": ("ours", {"share": False}),
    "hf-loop": ("hf", {}),
    "trl-default": ("trl", {"packing": False, "checkpointing": True, "liger": False, "unsloth": False}),
    "trl-tuned": ("trl", {"packing": True, "checkpointing": False, "liger": True, "unsloth": False}),
    "unsloth": ("trl", {"packing": True, "checkpointing": False, "liger": False, "unsloth": True}),
}


def rows_of(case: str, *, size: str, steps: int, tiny: bool) -> list[list[dict[str, list[int]]]]:
    """Steps of rows of random ids: {"input_ids", "labels"}; -100 where there is no loss. Chat rows: 30 % labelled."""
    _, budget, dense, shared = CASES[case]
    if tiny:
        budget, dense, shared = budget // 64, dense and dense // 64, shared // 16
    draw = random.Random(1)
    vocabulary = SIZES[size]["vocab_size"]
    prompt = [draw.randrange(10, vocabulary) for _ in range(shared)]
    found = []
    for _ in range(steps):
        rows, total = [], 0
        while total < budget:
            length = dense or max(24, min(1000, int(draw.lognormvariate(5.38, 0.6)))) // (16 if tiny else 1) + 4
            own = [draw.randrange(10, vocabulary) for _ in range(length)]
            hidden = 0 if dense else int(length * 0.7)
            rows.append({"input_ids": prompt + own, "labels": [-100] * (shared + hidden) + own[hidden:]})
            total += shared + length
        found.append(rows)
    return found


def model_flops(size: str, tokens: int, length: float) -> float:
    """FLOPs of a LoRA step over these tokens in the usual 4N accounting: two for the forward pass, two for the
    gradient of the activations, none for frozen weights; attention of causal rows of this mean length added."""
    c = SIZES[size]
    head = c["hidden_size"] // c["num_attention_heads"]
    kv = head * c["num_key_value_heads"]
    layer = c["hidden_size"] * (2 * c["hidden_size"] + 2 * kv) + 3 * c["hidden_size"] * c["intermediate_size"]
    matrices = c["num_hidden_layers"] * layer + c["hidden_size"] * c["vocab_size"]
    attention = 2 * length * c["hidden_size"] * c["num_hidden_layers"]
    return tokens * (4 * matrices + 3 * attention)


def call(script: str, settings: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    """One script in a process of its own; its report, or {"error": why}."""
    out = Path(settings["out"])
    out.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / f"train_gpu_{script}.py"), json.dumps(settings)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, seconds), check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {seconds:.0f} s"}
    if done.returncode != 0 or not out.exists():
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def figures(found: dict[str, Any], *, size: str, length: float, peak: float | None) -> dict[str, Any]:
    """Rates over the steps that count, peak memory, and the share of the device's peak that useful work makes."""
    if "error" in found:
        return found
    kept = list(zip(found["tokens"], found["seconds"], strict=True))[DROPPED:]
    rates = [tokens / seconds for tokens, seconds in kept]
    rate = statistics.median(rates)
    report = {
        "tokens_per_second": round(rate, 1),
        "range": [round(min(rates), 1), round(max(rates), 1)],
        "peak_gb": round(found["peak_bytes"] / 1e9, 2),
        "last_loss": found["losses"][-1] if found["losses"] else None,
    }
    if peak is not None:
        report["mfu"] = round(rate * model_flops(size, 1, length) / (peak * 1e12), 4)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    parser.add_argument("--peak", type=float, default=989.0, help="the device's bf16 peak in TFLOP/s, for MFU")
    parser.add_argument("--seconds", type=float, default=570.0)
    arguments = parser.parse_args()
    ends, tiny = time.monotonic() + arguments.seconds, arguments.size == "tiny"
    report: dict[str, Any] = {"device": arguments.device, "peak_tflops": arguments.peak, "cases": {}}
    with tempfile.TemporaryDirectory(prefix="smedje-gpu-") as scratch:
        work = Path(scratch)
        common = {"work": scratch, "device": arguments.device, "steps": arguments.steps, "out": str(work / "out.json")}
        used = {"tiny"} if tiny else {CASES[case][0] for case in arguments.cases.split(",")}
        for size in sorted(used):
            made = call("check", {**common, "make": size, "sizes": SIZES[size]}, seconds=ends - time.monotonic())
            report.setdefault("models", {})[size] = made
        report["ceiling"] = call("check", {**common, "make": None, "tiny": tiny}, seconds=ends - time.monotonic())
        report["guard"] = call("check", {**common, "guard": sorted(used)[0]}, seconds=ends - time.monotonic())
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
        for case in arguments.cases.split(","):
            size = "tiny" if tiny else CASES[case][0]
            steps = rows_of(case, size=size, steps=arguments.steps, tiny=tiny)
            (work / "steps.json").write_text(json.dumps(steps))
            lengths = [len(row["input_ids"]) for step in steps for row in step]
            peak = arguments.peak if arguments.device == "cuda" else None
            for engine in arguments.engines.split(","):
                script, options = ENGINES[engine]
                print(f"{case}: {engine}", file=sys.stderr, flush=True)
                found = call(script, {**common, "size": size, **options}, seconds=min(150.0, ends - time.monotonic()))
                mean = sum(n * n for n in lengths) / sum(lengths)
                report["cases"].setdefault(case, {})[engine] = figures(found, size=size, length=mean, peak=peak)
                arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
