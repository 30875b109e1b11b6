"""Estimates against twelve real jobs: python benchmarks/estimates.py --models FOLDER [--json OUT]

A live server, jobs one after another on a tiny model and on SmolLM2-135M, of different rows, lengths, epochs and ranks.
Each is predicted when it is created and compared when it has ended; the first ones of a model rest on arithmetic, the
later ones on those before. All are shown. Then a job that cannot fit into this machine's memory is asked for: it must
be refused with a configuration that fits, and that one is run on the same data. --models: a folder with the installed
smollm2-135m-instruct. About eight minutes; the last job takes most of the machine's memory, so leave it alone.
"""

import argparse
import json
import os
import random
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx2
from _peers import write_report
from openai import OpenAI
from tests.server_process import KEY, MODEL, ServerProcess, finished, server_home

from smedje.modeling.folder import model_folder
from smedje.objects.machine import usable_memory

LARGE = "smollm2-135m-instruct"
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
# A flat stream needs at least so much memory a token with SmolLM2, by its shapes.
TOKEN_BYTES = 1_000_000
MOST_STREAM = 131_072
ROW_TOKENS = 800


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One job. words: of a prompt and of an answer."""

    model: str
    rows: int
    words: tuple[int, int]
    epochs: int = 1
    rank: int = 16
    batch: int = 8
    micro_batch_tokens: int | None = None


JOBS = (
    Asked(model=LARGE, rows=16, words=(40, 40), rank=8),
    Asked(model=MODEL, rows=100, words=(20, 20)),
    Asked(model=LARGE, rows=50, words=(60, 60)),
    Asked(model=LARGE, rows=16, words=(300, 100)),
    Asked(model=MODEL, rows=400, words=(40, 20), epochs=2),
    Asked(model=LARGE, rows=80, words=(30, 30), rank=32, batch=16),
    Asked(model=LARGE, rows=20, words=(120, 80), epochs=2),
    Asked(model=MODEL, rows=1500, words=(10, 30), rank=4, batch=32),
    Asked(model=LARGE, rows=12, words=(500, 200), batch=4),
    Asked(model=LARGE, rows=30, words=(60, 60), epochs=3),
    Asked(model=MODEL, rows=300, words=(150, 100), rank=8),
    Asked(model=LARGE, rows=70, words=(80, 80), rank=64, batch=16),
)


def rows_of(asked: Asked, seed: int) -> bytes:
    """Chat lines with random words."""
    draw = random.Random(seed)

    def say(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=max(1, round(words * draw.uniform(0.7, 1.3)))))

    lines = []
    for number in range(asked.rows):
        question, answer = f"{number} {say(asked.words[0])}", say(asked.words[1])
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    return "".join(lines).encode()


def body_of(asked: Asked, file_id: str) -> dict[str, Any]:
    """The request that creates the job."""
    options: dict[str, Any] = {"lora_rank": asked.rank, "validation_fraction": 0.1}
    if asked.micro_batch_tokens is not None:
        options["micro_batch_tokens"] = asked.micro_batch_tokens
    numbers = {"n_epochs": asked.epochs, "batch_size": asked.batch}
    return {
        "model": asked.model,
        "training_file": file_id,
        "seed": 1,
        "method": {"type": "supervised", "supervised": {"hyperparameters": numbers}},
        "smedje": options,
    }


class Place:
    """A running server with its two clients."""

    def __init__(self, openai: OpenAI, http: httpx2.Client) -> None:
        self._openai = openai
        self._http = http

    def upload(self, asked: Asked, seed: int) -> str:
        """The id of a file with the job's rows."""
        return self._openai.files.create(file=("rows.jsonl", rows_of(asked, seed)), purpose="fine-tune").id

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the server answers, which must be yes."""
        answer = self._http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def run(self, asked: Asked, file_id: str) -> dict[str, Any]:
        """Create the job and wait for its end: what was predicted, and what it took."""
        made = self.post("/v1/fine_tuning/jobs", body_of(asked, file_id))
        job = finished(self._openai, made["id"], seconds=600)
        if job.error is not None and job.error.code:
            return {"status": job.status, "code": job.error.code, "message": job.error.message}
        told = self._http.get(f"/api/fine_tuning/jobs/{job.id}/comparison").json()
        steps = [
            int(event.data["step"])
            for event in self._openai.fine_tuning.jobs.list_events(job.id, limit=20)
            if event.type == "metrics" and isinstance(event.data, dict)
        ]
        return {"status": job.status, "predicted": told["predicted"], "steps": max(steps), **_took(told)}


def _took(told: dict[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in ("trained_tokens", "seconds", "memory_bytes")}


def row(asked: Asked, found: dict[str, Any]) -> dict[str, Any]:
    """One line of the table: predicted and actual side by side."""
    if "predicted" not in found:
        return {"job": _name(asked), **found}
    guess = found["predicted"]
    return {
        "job": _name(asked),
        "tokens": [guess["trained_tokens"], found["trained_tokens"]],
        "steps": [guess["steps"], found["steps"]],
        "seconds": [guess["seconds"], found["seconds"]],
        "seconds_bar": [guess["seconds_low"], guess["seconds_high"]],
        "memory_mb": [round(guess["memory_bytes"] / 1e6), round(found["memory_bytes"] / 1e6)],
        "basis": guess["basis"],
    }


def _name(asked: Asked) -> str:
    words = "+".join(map(str, asked.words))
    return f"{asked.model}: {asked.rows} rows of {words} words, {asked.epochs} epochs, rank {asked.rank}"


def errors_of(table: list[dict[str, Any]]) -> dict[str, Any]:
    """How far predictions lie from what was, over all jobs and over those that rest on earlier ones."""
    whole = [one for one in table if "tokens" in one]
    learnt = [one for one in whole if "arithmetic" not in one["basis"]]

    def median(rows: list[dict[str, Any]], name: str) -> float | None:
        off = [abs(one[name][0] - one[name][1]) / one[name][1] for one in rows]
        return round(statistics.median(off), 3) if off else None

    return {
        "jobs": len(whole),
        "tokens_exact": sum(one["tokens"][0] == one["tokens"][1] for one in whole),
        "steps_exact": sum(one["steps"][0] == one["steps"][1] for one in whole),
        "median_error_seconds": median(whole, "seconds"),
        "median_error_seconds_learnt": median(learnt, "seconds"),
        "within_the_bar": sum(o["seconds_bar"][0] <= o["seconds"][1] <= o["seconds_bar"][1] for o in whole),
        "median_error_memory": median(whole, "memory_mb"),
    }


def refusal(place: Place) -> dict[str, Any]:
    """A job whose one stream needs a little more than the machine has: refused, then run as proposed, in half."""
    rows = round(1.12 * usable_memory() / TOKEN_BYTES) // 1000
    # The stream holds all rows of the step, but not twice as many: half of it leaves the machine some room.
    stream = min(MOST_STREAM, round(1.3 * rows * ROW_TOKENS))
    asked = Asked(model=LARGE, rows=rows, words=(800, 40), batch=rows, micro_batch_tokens=stream)
    file_id = place.upload(asked, 99)
    body = body_of(asked, file_id)
    offer = place.post("/api/fine_tuning/estimate", body)
    refused = place.run(asked, file_id)
    proposal = offer["proposal"] or ""
    found = re.search(r"micro_batch_tokens (\d+)", proposal)
    told: dict[str, Any] = {
        "fits": offer["fits"],
        "predicted_gb": round(offer["memory_bytes"] / 1e9, 1),
        "machine_gb": round(usable_memory() / 1e9, 1),
        "proposal": proposal,
        "refused": refused,
    }
    if found is not None:
        smaller = Asked(**{**vars(asked), "micro_batch_tokens": int(found[1])})
        told["run_as_proposed"] = row(smaller, place.run(smaller, file_id))
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help=f"a folder with the installed {LARGE}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--jobs", type=int, default=len(JOBS), help="the first so many")
    parser.add_argument("--no-refusal", action="store_true", help="leave the job out that needs the whole machine")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        server = ServerProcess(server_home(Path(name)), {"SMEDJE_THREADS": "0"})
        model_folder(server.home, LARGE).symlink_to((given.models / LARGE).resolve())
        server.start()
        try:
            headers = {"authorization": f"Bearer {KEY}"}
            with server.client() as openai, httpx2.Client(base_url=server.url, headers=headers, timeout=60) as http:
                place, table = Place(openai, http), []
                for number, asked in enumerate(JOBS[: given.jobs]):
                    table.append(row(asked, place.run(asked, place.upload(asked, number))))
                    print(json.dumps(table[-1]), file=sys.stderr, flush=True)
                refused = None if given.no_refusal else refusal(place)
        finally:
            server.stop()
    report = {
        "machine": {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)},
        "jobs": table,
        "errors": errors_of(table),
        "refusal": refused,
    }
    write_report(report, given.json)
    ran = refused is None or "tokens" in refused.get("run_as_proposed", {})
    return 0 if ran and all("tokens" in one for one in table) else 1


if __name__ == "__main__":
    sys.exit(main())
