"""Checking data against peers: python benchmarks/data.py --json OUT [--lines N] [--peers ...] [--doc2dial FILE]

A file of N chat lines (a million by default, about 1 GB) with 10,000 planted faults of all kinds in the table of
docs/data-faults.md, and the same file without faults. Ours must tell exactly the planted lines. Peers run in an
environment of their own, which this script builds, on both files: what they say of the faults is recorded as they say
it. Time and peak memory are those of the whole process tree, started anew for each measurement. With --doc2dial (a file
of `examples/doc2dial.py --rows dialogues`), 500 near copies are planted there and counted.
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

import psutil

ROOT = Path(__file__).resolve().parents[1]
RUNNER = Path(__file__).with_name("data_peers.py")
PEERS: dict[str, tuple[str, ...]] = {
    "cookbook": (),
    "pandas": ("pandas==3.0.0",),
    "datasets": ("datasets==5.2.0",),
}
FAULTS = 10_000
NEAR_COPIES = 500
LINE_CHARACTERS = 950
TEXT = (
    "where is the parcel that I ordered last week why does tracking say nothing about it when will somebody call me "
    "back please we are sorry to hear this your order left the depot in Odense and reaches you tomorrow before noon"
)


def planted_kinds() -> list[tuple[str, bytes, str]]:
    """The faults of the tests' table: name, line, code."""
    sys.path[:0] = [str(ROOT / "tests" / "unit"), str(ROOT)]
    from test_data_faults import FAULTS as table

    return list(table)


def chat_line(draw: random.Random, number: int) -> bytes:
    """One valid line of about a kilobyte that no other line repeats."""
    question = f"{number} " + " ".join(draw.choices(TEXT.split(), k=LINE_CHARACTERS // 16))
    answer = " ".join(draw.choices(TEXT.split(), k=LINE_CHARACTERS // 8))
    messages = [
        {"role": "system", "content": "You are a support agent."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n"


def write_files(folder: Path, lines: int, faults: int) -> tuple[Path, Path, dict[int, str]]:
    """The planted file, the clean file, and the planted lines with their codes."""
    draw = random.Random(1)
    kinds = planted_kinds()
    repeated = (
        b'{"messages": [{"role": "user", "content": "Question 1"}, {"role": "assistant", "content": "On its way."}]}\n'
    )
    places = set(draw.sample(range(2, lines), faults))
    order = [number % len(kinds) for number in range(faults)]
    planted: dict[int, str] = {}
    huge = 0
    with (folder / "planted.jsonl").open("wb") as bad, (folder / "clean.jsonl").open("wb") as clean:
        for number in range(lines):
            good = chat_line(draw, number) if number else repeated
            clean.write(good)
            if number not in places:
                bad.write(good)
                continue
            kind = order[len(planted)]
            if kinds[kind][2] == "line_too_large":
                # One is enough; thousands would be a file of lines that nobody reads.
                kind, huge = (kind, 1) if not huge else (kind - 1, huge)
            _, raw, code = kinds[kind]
            bad.write(raw + b"\n")
            planted[number + 1] = code
    return folder / "planted.jsonl", folder / "clean.jsonl", planted


def measure(command: list[str]) -> dict[str, Any]:
    """Run a command: seconds, peak resident bytes of its whole tree, and the JSON of its last line."""
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    root, peak = psutil.Process(child.pid), 0
    while child.poll() is None:
        resident = 0
        try:
            for process in [root, *root.children(recursive=True)]:
                resident += process.memory_info().rss
        except psutil.Error:
            resident = 0
        peak = max(peak, resident)
        time.sleep(0.02)
    seconds = time.monotonic() - began
    output, errors = child.communicate()
    last = output.decode().strip().splitlines()[-1:] or ["{}"]
    answer = (
        json.loads(last[0]) if child.returncode == 0 else {"failed": errors.decode().strip().splitlines()[-1][:300]}
    )
    return {"seconds": round(seconds, 2), "peak_mb": round(peak / 1e6, 1), **answer}


def peer_python(work: Path, name: str) -> str:
    """The interpreter of a peer's own environment, built on first use."""
    if not PEERS[name]:
        return sys.executable
    folder = work / f"env-{name}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEERS[name]], check=True)
    return str(python)


OURS = """
import json, sys
from pathlib import Path
from smedje.data.validate import validate_file
report = validate_file(Path(sys.argv[1]))
found = report.statistics
told = {"examples": found.examples, "errors": found.errors, "warnings": found.warnings, "codes": found.problem_codes}
print(json.dumps(told))
"""


def exact(path: Path, planted: dict[int, str]) -> dict[str, int]:
    """Whether the rules tell exactly the planted lines with their codes; copies are told by validation, not by line."""
    from smedje.data.parse import parse_lines

    told: dict[int, set[str]] = {}
    for parsed in parse_lines(path):
        if parsed.problems:
            told[parsed.line] = {problem.code for problem in parsed.problems}
    by_line = {line for line, code in planted.items() if code != "duplicate_example"}
    return {
        "planted_lines": len(planted),
        "missed_lines": len(by_line - told.keys()),
        "other_lines_told": len(told.keys() - planted.keys()),
        "wrong_codes": sum(planted[line] not in told.get(line, ()) for line in by_line),
    }


def near_copies(source: Path, folder: Path, *, seed: int = 1) -> dict[str, Any]:
    """Plant near copies (some words changed, case, spaces) in a chat file and count what is found."""
    from smedje.data.insights import look_at

    draw = random.Random(seed)
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    chosen = draw.sample([row for row in rows if len(json.dumps(row)) > 600], NEAR_COPIES)
    copies = []
    for row in chosen:
        copy = json.loads(json.dumps(row))
        message = draw.choice([one for one in copy["messages"] if len(one["content"].split()) > 6])
        words = message["content"].split()
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(words))
            words[place] = draw.choice((words[place].upper(), words[place][::-1], "really", ""))
        message["content"] = draw.choice((" ", "  ")).join(words)
        copies.append(copy)
    path = folder / "near.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows + copies), encoding="utf-8")
    began = time.monotonic()
    # The first hundred lines of a finding are named; the counts tell the rest.
    codes = ("near_duplicate", "duplicate_example", "contradictory_answer")
    before = {one.code: one.count for one in look_at(source).findings}
    middle = time.monotonic()
    after = {one.code: one.count for one in look_at(path).findings}
    found = sum(after.get(code, 0) - before.get(code, 0) for code in codes)
    return {
        "rows": len(rows),
        "planted": NEAR_COPIES,
        "found_more_than_before": found,
        "recall": round(min(1.0, found / NEAR_COPIES), 4),
        "natural_near_copies": before.get("near_duplicate", 0),
        "seconds_clean": round(middle - began, 1),
        "seconds_planted": round(time.monotonic() - middle, 1),
    }


def main() -> None:
    """Write the result as JSON."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--json", type=Path, required=True)
    arguments.add_argument("--lines", type=int, default=1_000_000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--peers", default=",".join(PEERS))
    arguments.add_argument("--work", type=Path, help="kept between runs: the peers' environments")
    arguments.add_argument("--doc2dial", type=Path)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        work = given.work or folder
        faults = min(FAULTS, given.lines // 100)
        planted_file, clean_file, planted = write_files(folder, given.lines, faults)
        commands = {"smedje": [sys.executable, "-c", OURS]}
        for name in filter(None, given.peers.split(",")):
            commands[name] = [peer_python(work, name), str(RUNNER), name]
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
        for _ in range(given.rounds):
            for name, command in commands.items():
                rounds[name].append(measure([*command, str(clean_file)]))
        result: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
            "lines": given.lines,
            "bytes": clean_file.stat().st_size,
            "clean": {
                name: {**found[-1], "seconds": statistics.median(one["seconds"] for one in found)}
                for name, found in rounds.items()
            },
            "planted": {name: measure([*command, str(planted_file)]) for name, command in commands.items()},
            "exact": exact(planted_file, planted),
        }
        if given.doc2dial is not None:
            result["near_copies"] = near_copies(given.doc2dial, folder)
    given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
