"""Near copies and leaks in real dialogues, row by row: python benchmarks/near_copies.py [--json OUT] [--doc2dial FILE]

doc2dial's support dialogues (fetched as `examples/doc2dial.py` does, one row a dialogue) with 500 near copies planted:
of single dialogues, each with a few words of one message changed, dropped, doubled or written otherwise, not reworded.
Once they stand in the same file, once in a validation file among 100 dialogues that training does not have. A planted
row is right when it is named; precision counts every row that is named besides. Truth is checked apart: pairs are also
compared by the exact similarity of their 5-grams, all with all. About a minute.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _peers import ROOT, write_report

PLANTED = 500
APART = 100
LEAST_CHARACTERS = 300
# A copy whose answer alone was changed asks what an earlier line asks, which is told as the heavier thing.
COPIES = ("near_duplicate", "duplicate_example", "contradictory_answer")
Row = dict[str, Any]


def dialogues(given: Path | None, folder: Path) -> list[Row]:
    """Whole dialogues, one a row."""
    if given is None:
        example = [sys.executable, str(ROOT / "examples" / "doc2dial.py"), "--out", str(folder), "--rows", "dialogues"]
        subprocess.run(example, check=True, stdout=subprocess.DEVNULL)
        paths = [folder / "train.jsonl", folder / "validation.jsonl"]
    else:
        paths = [given]
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def near_copy(row: Row, draw: random.Random) -> Row:
    """The row with one to three words of one message changed, dropped, doubled or written otherwise."""
    copy: Row = json.loads(json.dumps(row))
    message = draw.choice([one for one in copy["messages"][1:] if len(one["content"].split()) > 4])
    words = message["content"].split()
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(words))
        word = words[place]
        words[place] = draw.choice((word.upper(), word[::-1], "really", "", f"{word} {word}", f"{word},"))
    message["content"] = draw.choice((" ", "  ", " \n")).join(words)
    return copy


def write(path: Path, rows: list[Row]) -> Path:
    """The rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def score(named: set[int], planted: set[int], near: set[int]) -> dict[str, Any]:
    """Precision and recall of the named lines. near: lines that are near copies by exact comparison, planted or not."""
    right = named & planted
    return {
        "planted": len(planted),
        "named": len(named),
        "named_and_planted": len(right),
        "precision": round(len(right) / max(1, len(named)), 4),
        "recall": round(len(right) / len(planted), 4),
        "missed_lines": sorted(planted - named),
        "other_lines": sorted(named - planted),
        "by_exact_comparison": {
            "near": len(near),
            "precision": round(len(named & near) / max(1, len(named)), 4),
            "recall": round(len(named & near) / max(1, len(near)), 4),
        },
    }


def exactly_near(rows: list[Row], others: list[Row] | None) -> set[int]:
    """Lines (from 1) of `rows` that nearly equal an earlier row, or any of `others`, by comparing all with all."""
    from smedje.data.near import GRAM, SIMILAR, normal

    def grams(row: Row) -> set[bytes]:
        text = normal("\n".join(one["content"] for one in row["messages"] if one["role"] != "system"))
        return {text[place : place + GRAM] for place in range(len(text) - GRAM + 1)}

    sets, against = [grams(row) for row in rows], [grams(row) for row in others or []]
    found: set[int] = set()
    for number, one in enumerate(sets):
        for other in sets[:number] if others is None else against:
            few, many = sorted((len(one), len(other)))
            # Sets of very different sizes cannot be near, whatever they share.
            if few >= SIMILAR * many and (shared := len(one & other)) >= SIMILAR * (few + many - shared):
                found.add(number + 1)
                break
    return found


def within_a_file(rows: list[Row], copies: list[Row], folder: Path, draw: random.Random) -> dict[str, Any]:
    """Copies shuffled into the file they were made from, each after its original."""
    from smedje.data.insights import look_at

    places = {id(row): float(number) for number, row in enumerate(rows)}
    for copy in copies:
        places[id(copy)] = draw.uniform(places[id(copy["of"])], len(rows))
    mixed = sorted([*rows, *copies], key=lambda row: places[id(row)])
    path = write(folder / "within.jsonl", [{"messages": row["messages"]} for row in mixed])
    planted = {number + 1 for number, row in enumerate(mixed) if "of" in row}
    began = time.monotonic()
    named = {line for one in look_at(path, shown=len(mixed)).findings if one.code in COPIES for line in one.lines}
    seconds = time.monotonic() - began
    return {"rows": len(mixed), "seconds": round(seconds, 2), **score(named, planted, exactly_near(mixed, None))}


def between_files(rows: list[Row], copies: list[Row], folder: Path, draw: random.Random) -> dict[str, Any]:
    """Copies among dialogues of their own in a validation file."""
    from smedje.data.leaks import find_leaks

    training, apart = rows[:-APART], rows[-APART:]
    mixed = [*copies, *apart]
    draw.shuffle(mixed)
    first = write(folder / "training.jsonl", training)
    second = write(folder / "validation.jsonl", [{"messages": row["messages"]} for row in mixed])
    planted = {number + 1 for number, row in enumerate(mixed) if "of" in row}
    began = time.monotonic()
    named = {line for one in find_leaks(first, second, shown=len(mixed)) for line in one.lines}
    seconds = time.monotonic() - began
    return {"rows": len(mixed), "seconds": round(seconds, 2), **score(named, planted, exactly_near(mixed, training))}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--doc2dial", type=Path, help="a file of whole dialogues; fetched when left out")
    parser.add_argument("--planted", type=int, default=PLANTED)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = dialogues(given.doc2dial, folder)
        long = [row for row in rows[:-APART] if len(json.dumps(row["messages"][1:])) > LEAST_CHARACTERS]
        copies = []
        for row in draw.sample(long, min(given.planted, len(long))):
            copies.append({**near_copy(row, draw), "of": row})
        report = {
            "dialogues": len(rows),
            "within_a_file": within_a_file(rows, copies, folder, draw),
            "between_training_and_validation": between_files(rows, copies, folder, draw),
        }
    write_report(report, given.json)
    return 0 if all(report[name]["recall"] > 0 for name in report if name != "dialogues") else 1


if __name__ == "__main__":
    sys.exit(main())
