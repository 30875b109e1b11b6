"""LoRA steps on Phi-3-mini at its full size, on a CPU: python benchmarks/phi3_full_size.py --json OUT

Writes a model folder with the real shapes, type and tokenizer's size and random weights to a temporary folder (7.6 GB,
removed at the end), hands a run to the product's own worker, and reports each step's rate, the share of what the
machine's measured product rate allows, and the worker's peak memory. `--layers 2` shows the path in seconds.
"""

import argparse
import json
import math
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from train_cpu_peak import gflops

from smedje.executors.base import worker_environment
from smedje.modeling.tiny_random import write_tiny_phi3
from smedje.objects.run_folder import RunFolder
from smedje.objects.store import open_objects
from smedje.training.spec import DataSpec, LoraSpec, TrainingSpec, spec_to_json

HIDDEN, INNER, VOCABULARY, RANK = 3072, 8192, 32_064, 16
WORDS = ("kettle", "brew", "filter", "steam", "grind", "water", "clean", "pump", "valve", "warm", "light", "code")


def write_model(folder: Path, *, layers: int) -> None:
    """The published shapes in bf16, one tensor at a time; the tokenizer is a small one with ids below the real size."""
    write_tiny_phi3(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "sliding_window": 2047,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder / "model.safetensors", shapes(layers))


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published model."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for number in range(layers):
        layer = f"model.layers.{number}."
        found |= {
            layer + "input_layernorm.weight": (HIDDEN,),
            layer + "self_attn.qkv_proj.weight": (3 * HIDDEN, HIDDEN),
            layer + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            layer + "post_attention_layernorm.weight": (HIDDEN,),
            layer + "mlp.gate_up_proj.weight": (2 * INNER, HIDDEN),
            layer + "mlp.down_proj.weight": (HIDDEN, INNER),
        }
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def write_weights(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of random numbers that repeat after 16 million; norms are one."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in wanted.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    draw = torch.empty(16_000_003).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(0))
    numbers = draw.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    one = torch.ones(1, dtype=torch.bfloat16).view(torch.int16).numpy().tobytes()
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for shape in wanted.values():
            left = 2 * math.prod(shape)
            source = one * HIDDEN if len(shape) == 1 else numbers
            while left > 0:
                left -= out.write(source[:left])


def write_rows(path: Path, *, rows: int, tokens: int) -> None:
    """Conversations of about so many tokens of the byte-level tokenizer, a third of them the answer."""
    draw = random.Random(0)

    def say(letters: int) -> str:
        return " ".join(draw.choices(WORDS, k=max(1, letters // 6)))

    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": say(tokens * 2 // 3)},
                    {"role": "assistant", "content": say(tokens // 3)},
                ]
            }
        )
        for _ in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n")


def gigaflop_per_token(layers: int, *, tokens: int, labelled: float) -> float:
    """Useful arithmetic: 4 per frozen weight, 6 per adapter weight, head on labelled rows, causal attention."""
    block = HIDDEN * 3 * HIDDEN + HIDDEN * HIDDEN + 3 * HIDDEN * INNER
    adapter = RANK * ((HIDDEN + 3 * HIDDEN) + 2 * HIDDEN + (HIDDEN + 2 * INNER) + (INNER + HIDDEN))
    attention = 3.5 * 2 * tokens * HIDDEN
    return (layers * (4 * block + 6 * adapter + attention) + labelled * 4 * VOCABULARY * HIDDEN) / 1e9


def measure(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run of the worker; its step events and its result."""
    began = time.perf_counter()
    write_model(work / "phi-3-mini", layers=arguments.layers)
    written = time.perf_counter() - began
    objects = open_objects((work / "objects").as_uri())
    write_rows(work / "rows.jsonl", rows=arguments.batch * arguments.steps, tokens=arguments.tokens // arguments.batch)
    objects.put("data/train", (work / "rows.jsonl").read_bytes())
    spec = TrainingSpec(
        job_id="ftjob-phi3",
        base_model="phi-3-mini",
        base_folder=str(work / "phi-3-mini"),
        seed=0,
        today="2026-01-31",
        data=DataSpec(training_key="data/train", validation_fraction=0.0),
        n_epochs=1,
        batch_size=arguments.batch,
        max_steps=arguments.steps,
        lora=LoraSpec(rank=RANK, precision=arguments.precision),
        micro_batch_tokens=arguments.tokens * 2,
        share_prefixes=False,
        state_seconds=3600.0,
        threads=os.cpu_count() or 1,
    )
    folder = RunFolder(objects, "run-phi3")
    folder.write_spec(spec_to_json(spec))
    command = [sys.executable, "-m", "smedje.training.worker", "--objects", (work / "objects").as_uri()]
    url = (work / "objects").as_uri()
    env = worker_environment(os.environ, objects_url=url)
    began = time.perf_counter()
    subprocess.run([*command, "--run", "run-phi3", "--cache", str(work / "cache")], check=True, env=env)
    wall = time.perf_counter() - began
    result = folder.read_result()
    assert result is not None
    assert result.outcome == "succeeded", result
    events, _ = folder.read_events("")
    return {
        "seconds_to_write_the_model": round(written, 1),
        "wall_seconds": round(wall, 1),
        "steps": [event.data for event in events if event.kind == "step"],
        "resolved": next(event.data for event in events if event.kind == "resolved"),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2, help="examples a step")
    parser.add_argument("--tokens", type=int, default=512, help="tokens a step, about")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--folder", type=Path, default=None, help="where there are 9 GB to write to")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="smedje-phi3-", dir=arguments.folder))
    try:
        peak = gflops(arguments.precision)
        found = measure(work, arguments)
    finally:
        shutil.rmtree(work)
    later = found["steps"][1:] or found["steps"]
    rate = max(step["tokens_per_second"] for step in later)
    share = sum(s["labelled_tokens_per_second"] for s in later) / sum(s["tokens_per_second"] for s in later)
    cost = gigaflop_per_token(arguments.layers, tokens=arguments.tokens // arguments.batch, labelled=share)
    report = {
        "layers": arguments.layers,
        "precision": arguments.precision,
        "tokens_per_second": round(rate, 2),
        "gigaflop_per_token": round(cost, 2),
        "machine_gflops": round(peak),
        "limit_tokens_per_second": round(peak / cost, 2),
        "share_of_limit": round(rate * cost / peak, 3),
        **found,
    }
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({name: value for name, value in report.items() if name not in ("steps", "resolved")}, indent=2))


if __name__ == "__main__":
    main()
