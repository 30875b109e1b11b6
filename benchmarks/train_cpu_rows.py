"""The workloads of train_cpu.py as token ids and labels: synthetic, seeded, the same for every engine."""

import json
import random
from pathlib import Path

# Tokens of the system prompt that every example begins with.
SHARED = {"W1": 0, "W2": 120, "W3": 400, "W4": 1000, "W5": 0, "W6": 0, "W7": 0}
ROWS_OF_W7 = 200
VOCABULARY = 32_000  # within every base model's


def rows_of(workload: str, count: int, *, seed: int = 1) -> list[dict[str, list[int]]]:
    """`count` examples: ids, and labels that are -100 where there is no loss.

    W1-W4: log-normal lengths (about 260 tokens), the last 30 % labelled, after a shared prompt. W5: 1,024 tokens, all
    labelled. W6: five turns, each answer labelled. W7: about 60 tokens, 30 % labelled.
    """
    draw = random.Random(seed)
    shared = [draw.randrange(100, VOCABULARY) for _ in range(SHARED[workload])]
    rows = []
    for _ in range(count):
        labels: list[int] = []
        for asked, answered in _turns(workload, draw):
            labels += [-100] * asked + [draw.randrange(100, VOCABULARY) for _ in range(answered)]
        own = [draw.randrange(100, VOCABULARY) if label < 0 else label for label in labels]
        rows.append({"input_ids": shared + own, "labels": [-100] * len(shared) + labels})
    return rows


def _turns(workload: str, draw: random.Random) -> list[tuple[int, int]]:
    """Tokens asked and tokens answered, of each turn."""
    if workload == "W5":
        return [(0, 1024)]
    if workload == "W6":
        return [
            (max(6, int(draw.lognormvariate(3.5, 0.6))), max(4, int(draw.lognormvariate(3.0, 0.6)))) for _ in "12345"
        ]
    middle = 4.0 if workload == "W7" else 5.38
    length = max(24, min(1000, int(draw.lognormvariate(middle, 0.6))))
    return [(int(length * 0.7), length - int(length * 0.7))]


def guard_rows(count: int) -> list[dict[str, list[int]]]:
    """Ragged rows that all begin with the same 40 tokens, about a third labelled; long enough for every fast path."""
    draw = random.Random(7)
    shared = [draw.randrange(100, VOCABULARY) for _ in range(40)]
    rows = []
    for _ in range(count):
        ids = shared + [draw.randrange(100, VOCABULARY) for _ in range(draw.randint(60, 240))]
        rows.append({"input_ids": ids, "labels": [-100] * (len(ids) - len(ids) // 3) + ids[-(len(ids) // 3) :]})
    return rows


def write_rows(work: Path, rows: list[dict[str, list[int]]]) -> None:
    """The rows, and for the peers the same rows in the order in which our loop will visit them."""
    from smedje.data.batches import epoch_order

    (work / "rows.json").write_text(json.dumps(rows))
    (work / "ordered.json").write_text(json.dumps([rows[i] for i in epoch_order(len(rows), seed=0, epoch=0)]))
