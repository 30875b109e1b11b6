"""From submitting a job to its first optimizer step, through a live server: python benchmarks/start_up.py

cold: the first job of a server that was just started. warm: the next, while the server holds the base model. Both
are measured as they come (a fifth of the rows held out: the base model is measured first) and with nothing held out.
Every job has a file of its own. Seconds count from before the request; a step counts once its update is done, by the
worker's own clock; seen is when a client that asks every 20 ms has its event.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

MODEL = "smollm2-135m-instruct"
KEY = "smedje-benchmark-owner-key-of-some-length"
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
TARGETS = {"cold": 6.0, "warm": 1.0}


@dataclass(frozen=True, kw_only=True)
class Start:
    """One job's start, in seconds since it was submitted; base is None where no row is held out."""

    kind: str
    held_out: bool
    answered: float
    ready: float
    base: float | None
    step: float
    seen: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help=f"folder of an installed base model; left out: {MODEL} is pulled")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    starts: list[Start] = []
    with tempfile.TemporaryDirectory(prefix="smedje-bench-") as scratch:
        home = Path(scratch) / "home"
        model = install(home, options.base)
        for repeat in range(options.repeats):
            for held_out in (True, False):
                with serve(home, options.threads) as url:
                    for kind in ("cold", "warm"):
                        starts.append(one_start(url, home, model, kind, held_out=held_out, options=options))
                        print(json.dumps(asdict(starts[-1])), flush=True)
            print(f"{repeat + 1} of {options.repeats}", file=sys.stderr)
    report = summary(starts)
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps({"summary": report, "starts": [asdict(s) for s in starts]}, indent=1) + "\n")
    return 0


def install(home: Path, base: Path | None) -> str:
    """The base model's name, installed in the state folder."""
    if base is None:
        command = [sys.executable, "-m", "smedje.cli", "models", "pull", MODEL]
        subprocess.run(command, env={**os.environ, "SMEDJE_HOME": str(home)}, check=True)
        return MODEL
    (home / "models").mkdir(parents=True)
    (home / "models" / base.name).symlink_to(base.resolve())
    return base.name


@contextmanager
def serve(home: Path, threads: int) -> Iterator[str]:
    """The URL of a server on this state folder, fresh and with nothing in memory."""
    env = {**os.environ, "SMEDJE_HOME": str(home), "SMEDJE_BOOTSTRAP_API_KEY": KEY, "SMEDJE_THREADS": str(threads)}
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "smedje.cli", "serve", "--port", "0"], env=env, stdout=output, stderr=output
        )
    try:
        while b"ready at " not in log.read_bytes():
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.05)
        yield log.read_text().split("ready at ")[1].split()[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def one_start(url: str, home: Path, model: str, kind: str, *, held_out: bool, options: argparse.Namespace) -> Start:
    """Submit a job of two steps, see its first step, and wait for its end."""
    with OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        file = client.files.create(file=("rows.jsonl", rows(options.rows)), purpose="fine-tune")
        more = {"lora_rank": 16, "max_steps": 2, **({} if held_out else {"validation_fraction": 0})}
        began = time.time()
        job = client.fine_tuning.jobs.create(
            model=model,
            training_file=file.id,
            seed=7,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4}}},
            extra_body={"smedje": more},
        )
        answered = time.time() - began
        while not any(_step(e) >= 1 for e in client.fine_tuning.jobs.list_events(job.id, limit=50).data):
            time.sleep(0.02)
        seen = time.time() - began
        while (now := client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed"):
            time.sleep(0.05)
    if now.status != "succeeded":
        raise SystemExit(f"the job failed: {now.error}")
    at = times(home, job.id)
    return Start(
        kind=kind,
        held_out=held_out,
        answered=round(answered, 3),
        ready=round(at["resolved"] - began, 3),
        base=round(at["0"] - began, 3) if "0" in at else None,
        step=round(at["1"] - began, 3),
        seen=round(seen, 3),
    )


def _step(event: Any) -> int:
    return int(event.data["step"]) if event.type == "metrics" and isinstance(event.data, dict) else -1


def times(home: Path, job_id: str) -> dict[str, float]:
    """When the job's worker had loaded everything, and when its steps ended, by its own clock."""
    found: dict[str, float] = {}
    for folder in (home / "objects" / "runs").iterdir():
        if json.loads((folder / "spec.json").read_bytes())["job_id"] == job_id:
            for path in sorted((folder / "events").iterdir()):
                for event in map(json.loads, path.read_bytes().splitlines()):
                    found[str(event["data"].get("step", event["kind"]))] = event["at"]
    return found


def rows(count: int) -> bytes:
    """Short chats, different at every call."""
    draw = random.Random()

    def say() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(5, 15)))

    chats = [[{"role": "user", "content": say()}, {"role": "assistant", "content": say()}] for _ in range(count)]
    return "\n".join(json.dumps({"messages": messages}) for messages in chats).encode()


def summary(starts: list[Start]) -> list[dict[str, Any]]:
    """Median and range of each kind of start."""
    lines = []
    for kind in ("cold", "warm"):
        for held_out in (True, False):
            mine = [start for start in starts if (start.kind, start.held_out) == (kind, held_out)]
            steps = [start.step for start in mine]
            lines.append(
                {
                    "kind": kind,
                    "held_out": held_out,
                    "repeats": len(mine),
                    "step": round(statistics.median(steps), 3),
                    "step_least": min(steps),
                    "step_most": max(steps),
                    "ready": round(statistics.median(start.ready for start in mine), 3),
                    "seen": round(statistics.median(start.seen for start in mine), 3),
                    "target": TARGETS[kind],
                    "met": statistics.median(steps) <= TARGETS[kind],
                }
            )
    return lines


def table(report: list[dict[str, Any]]) -> str:
    """The summary for people; seconds."""
    lines = ["start  held out  ready  first step (least to most)   seen   target"]
    lines += [
        f"{line['kind']:5}  {'a fifth' if line['held_out'] else 'nothing':8} {line['ready']:6.2f} {line['step']:11.2f} "
        f"({line['step_least']:.2f} to {line['step_most']:.2f})  {line['seen']:9.2f}  {line['target']:7.1f} "
        f"{'met' if line['met'] else 'MISSED'}"
        for line in report
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
