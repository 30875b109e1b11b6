"""Checking a large data file against peers: python benchmarks/data.py [--json OUT] [--lines N] [--rounds N]

A file of a million different chat lines (about 1 GB) with 10,000 planted faults of every kind in docs/data-faults.md,
and the same file without faults. Ours must tell exactly the planted lines with exactly their codes, or the benchmark
exits 1. The peers read both files: OpenAI's cookbook checker, pandas, `datasets`, and what TRL does with a file before
its first step. Some of them are slow, so some read only the first lines; `lines` says how many. Time and peak memory
are those of whole process trees, each started anew; rounds interleave. About seven minutes and 4 GB of disk.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from _peers import ROOT, measure, ours, peer_command, write_report

FAULTS = 10_000
# Peers that need minutes for all of it, or 20 GB of memory (pandas), read so many lines.
SUBSETS = {"pandas": 200_000, "trl": 20_000}
PEERS = ("cookbook", "pandas", "datasets", "trl")
# A kind of fault that is large by its nature stands in the file so many times at most.
MOST = {"a line of more than 16 MiB": 1, "100,000 levels of nesting": 20}
# What follows from a fault on the same line.
ALSO = {
    "a key twice in a message": {"unrecognized_role"},
    "a column twice": {"missing_messages_list"},
    "a tool result without a call": {"unknown_tool_call_id"},
}
REPEATED = b'{"messages": [{"role": "user", "content": "Question 1"}, {"role": "assistant", "content": "On its way."}]}'
WORDS = (
    "where is the parcel that I ordered last week why does tracking say nothing about it when will somebody call me "
    "back please we are sorry to hear this your order left the depot in Odense and reaches you tomorrow before noon "
    'the label says \\"fragile\\" so sign here\\n then smørrebrød 🙂 [1] C:\\\\temp'
)

VALIDATE = """
import json, sys
from pathlib import Path
from smedje.data.validate import validate_file
found = validate_file(Path(sys.argv[1])).statistics
print(json.dumps({"examples": found.examples, "errors": found.errors, "warnings": found.warnings,
                  "copies": found.duplicate_examples, "codes": found.problem_codes}))
"""


def fault_kinds() -> list[tuple[str, bytes, str]]:
    """The faults of the tests' table: name, line, code."""
    sys.path[:0] = [str(ROOT / "tests" / "unit"), str(ROOT)]
    from test_data_faults import FAULTS as table

    return list(table)


def fragments(draw: random.Random) -> list[str]:
    """Pieces of text of about 200 characters, as they stand in JSON."""
    words = WORDS.split()
    return [" ".join(draw.choices(words, k=40)) for _ in range(4096)]


def chat_line(draw: random.Random, pool: list[str], number: int) -> bytes:
    """One valid line of about a kilobyte that no other line repeats; one in three has two turns."""
    system = '{"role": "system", "content": "You are a support agent."}'
    turns = []
    for turn in range(1 if number % 3 else 2):
        question = f"{number} {draw.choice(pool)}"
        answer = " ".join(draw.choices(pool, k=1 if number % 3 == 0 else 3))
        turns.append(
            f'{{"role": "user", "content": "{question}"}}, {{"role": "assistant", "content": "{answer} {turn}"}}'
        )
    return f'{{"messages": [{system}, {", ".join(turns)}]}}\n'.encode()


def write_files(folder: Path, lines: int, faults: int) -> tuple[Path, Path, dict[int, frozenset[str]]]:
    """The planted file, the clean file, and the planted lines with their codes. Faults of a kind differ in a number."""
    draw, kinds = random.Random(1), fault_kinds()
    pool, places = fragments(draw), set(draw.sample(range(2, lines), faults))
    planted: dict[int, frozenset[str]] = {}
    times: dict[str, int] = defaultdict(int)
    with (folder / "planted.jsonl").open("wb") as bad, (folder / "clean.jsonl").open("wb") as clean:
        for number in range(lines):
            good = chat_line(draw, pool, number) if number else REPEATED + b"\n"
            clean.write(good)
            if number not in places:
                bad.write(good)
                continue
            place = len(planted)
            while times[(kind := kinds[place % len(kinds)])[0]] >= MOST.get(kind[0], faults):
                place += 7
            name, raw, code = kind
            times[name] += 1
            bad.write(raw.replace(b"Where is it?", b"Where is parcel %d?" % number) + b"\n")
            planted[number + 1] = frozenset({code} | ALSO.get(name, set()))
    return folder / "planted.jsonl", folder / "clean.jsonl", planted


def told_lines(path: Path) -> dict[int, frozenset[str]]:
    """Every line that validation tells, with its codes. Ranges are small, so that each keeps all of its problems."""
    from smedje.data.halves import find_copies
    from smedje.data.scan import next_line, scan_range

    size = path.stat().st_size
    cuts = sorted({0, size, *(next_line(path, size * part // 64) for part in range(1, 64))})
    segments = [scan_range(path, start, end) for start, end in pairwise(cuts)]
    told: dict[int, set[str]] = defaultdict(set)
    starts = [0]
    for found in segments:
        for problem in found.problems:
            told[starts[-1] + problem.line].add(problem.code)
        starts.append(starts[-1] + found.lines)
    for line, _ in find_copies(segments, starts[:-1]):
        told[line].add("duplicate_example")
    return {line: frozenset(codes) for line, codes in told.items()}


def exactness(path: Path, planted: dict[int, frozenset[str]]) -> dict[str, Any]:
    """Whether what is told is what was planted, as sets of (line, codes)."""
    told = told_lines(path)
    return {
        "equal": told == planted,
        "planted_lines": len(planted),
        "told_lines": len(told),
        "missed_lines": sorted(planted.keys() - told.keys())[:10],
        "other_lines": sorted(told.keys() - planted.keys())[:10],
        "other_codes": [line for line in planted if line in told and told[line] != planted[line]][:10],
        "kinds": len(fault_kinds()),
        "codes": len(frozenset().union(*planted.values())),
    }


def commands(names: list[str], base: Path, path: Path) -> dict[str, list[str]]:
    """What is run for each engine on one file."""
    found = {"smedje": ours(VALIDATE, str(path))}
    for name in names:
        found[name] = peer_command("data_peers.py", name, str(path), str(base), str(SUBSETS.get(name, 0)))
    return found


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The last round's answer with the median of the seconds and the largest peak."""
    return {
        **rounds[-1],
        "seconds": statistics.median(one["seconds"] for one in rounds),
        "all_seconds": [one["seconds"] for one in rounds],
        "peak_mb": max(one["peak_mb"] for one in rounds),
    }


def rate(report: dict[str, Any], lines: int, size: int) -> None:
    """Add megabytes a second; of peers that read the first lines, with the share of the bytes that these are."""
    for name, found in report.items():
        if "failed" not in found:
            share = min(1.0, (SUBSETS.get(name) or lines) / lines)
            found["lines"] = round(lines * share)
            found["mb_per_second"] = round(size * share / 1e6 / found["seconds"], 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3, help="of ours; peers are read twice at most")
    parser.add_argument("--peers", default=",".join(PEERS), help="empty for none")
    parser.add_argument("--base", type=Path, help="a base model's folder for TRL; a tiny one is made when left out")
    given = parser.parse_args()
    names = [name for name in given.peers.split(",") if name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = given.base or tiny_base(folder / "tiny")
        bad, clean, planted = write_files(folder, given.lines, min(FAULTS, given.lines // 100))
        rounds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for number in range(given.rounds):
            for name, command in commands(names if number < 2 else [], base, clean).items():
                print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
                rounds[name].append(measure(command))
        result: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)},
            "lines": given.lines,
            "bytes": clean.stat().st_size,
            "clean": {name: medians(found) for name, found in rounds.items()},
            "planted": {name: measure(command) for name, command in commands(names, base, bad).items()},
            "exact": exactness(bad, planted),
        }
        rate(result["clean"], given.lines, result["bytes"])
    write_report(result, given.json)
    return 0 if result["exact"]["equal"] else 1


def tiny_base(folder: Path) -> Path:
    """A tiny random model with its tokenizer and chat template."""
    from smedje.modeling.tiny_random import write_tiny_llama

    write_tiny_llama(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
