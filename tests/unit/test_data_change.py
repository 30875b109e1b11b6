"""Repair, import and split: new bytes from old ones, with an account of every row."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from smedje.cli.main import app
from smedje.data.dialogues import DialogueGroups, split_shares
from smedje.data.parse import parse_line, read_examples
from smedje.data.remedies import NEEDS
from smedje.data.repair import STEPS, Repair, repair_file
from smedje.data.validate import validate_file
from smedje.errors import InvalidRequest


def chat(question: str, answer: str, system: str | None = None, **columns: Any) -> bytes:
    first = [] if system is None else [{"role": "system", "content": system}]
    messages = [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **columns}).encode()


def repaired(path: Path, *steps: str, seed: int = 0) -> tuple[list[bytes], Repair]:
    out: list[bytes] = []
    done = repair_file(path, out.append, steps=steps, seed=seed)
    return b"".join(out).split(b"\n")[:-1], done


def file_of(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_each_step_does_what_it_says_and_no_more(tmp_path: Path) -> None:
    """Untouched lines keep their bytes; each step changes or drops its lines and accounts for them."""
    good, copy = chat("What is open?", "The museum."), chat("What is open?", "The museum.", id=7)
    path = file_of(
        tmp_path / "a.jsonl",
        good,
        copy,
        b"{",
        b"",
        chat("what  is open?", "The zoo."),
        chat("Whom do I ask?", "ida@post.dk"),
        chat("Sure?", " Yes. "),
        chat("How?", "N/A"),
        chat("Why?", "Because.", "Be brief."),
    )
    before = path.read_bytes()
    cases = {
        "drop_duplicates": ([2], 1),
        "drop_invalid": ([3, 4], 2),
        "drop_contradictions": ([5], 1),
        "redact": ([6], 0),
        "trim": ([7], 0),
        "drop_boilerplate": ([8], 1),
        "add_system_prompt": ([1, 2, 5, 6, 7, 8], 0),
    }
    for step, (touched, dropped) in cases.items():
        lines, done = repaired(path, step)
        assert [one.line for one in done.changes] == touched, step
        assert sum(done.dropped.values()) == dropped
        assert done.lines_read == 9
        assert done.lines_written == len(lines)
        assert (good in lines) is (step != "add_system_prompt")
    assert path.read_bytes() == before
    alone = [step for step in STEPS if step not in NEEDS]
    lines, done = repaired(path, *alone)
    assert all(parse_line(line, 1).example for line in lines)
    assert b"ida@post.dk" not in b"".join(lines)
    again, _ = repaired(file_of(tmp_path / "b.jsonl", *lines), *alone)
    assert again == lines


def test_rebalancing_is_seeded_and_spares_the_rare(tmp_path: Path) -> None:
    """No label stays above five times the rarest; the same seed keeps the same lines."""
    path = file_of(tmp_path / "a.jsonl", *(chat(f"Text {n}", "no" if n % 20 == 0 else "yes") for n in range(100)))
    lines, done = repaired(path, "rebalance")
    answers = [json.loads(line)["messages"][1]["content"] for line in lines]
    assert (answers.count("no"), answers.count("yes")) == (5, 25)
    assert done.dropped == {"rebalance": 70}
    assert repaired(path, "rebalance")[0] == lines
    assert repaired(path, "rebalance", seed=1)[0] != lines


def test_unknown_steps_are_refused_by_name(tmp_path: Path) -> None:
    """The error lists the steps."""
    for steps in (["polish"], []):
        with pytest.raises(InvalidRequest, match="drop_duplicates") as told:
            repair_file(tmp_path / "a.jsonl", bytes, steps=steps)
        assert told.value.code == "unknown_repair_step"


def dialogue_rows(path: Path) -> list[int]:
    groups = DialogueGroups()
    for example in read_examples(path):
        groups.add(example)
    return groups.groups()


def test_rows_that_begin_alike_are_one_dialogue(tmp_path: Path) -> None:
    """A row that goes on where another ended, and another answer to one question, share its number."""
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    more = [*turns, {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"}]
    path = file_of(
        tmp_path / "a.jsonl",
        json.dumps({"messages": more}).encode(),
        chat("Other", "A"),
        json.dumps({"messages": turns}).encode(),
        chat("Q", "Another answer"),
        chat("Q", "A", "Be brief."),
    )
    assert dialogue_rows(path) == [0, 1, 0, 0, 4]


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=30),
    labels=st.integers(1, 4),
    seed=st.integers(0, 5),
    shares=st.sampled_from([(0.8, 0.2), (0.8, 0.1, 0.1)]),
)
@settings(max_examples=60)
def test_a_split_keeps_groups_whole_and_every_row_once(
    sizes: list[int], labels: int, seed: int, shares: tuple[float, ...]
) -> None:
    """Whatever the groups and labels: each row in one part, each group in one part, the same for the same seed."""
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    names = [group % labels for group in groups]
    parts = split_shares(len(groups), shares, seed=seed, groups=groups, labels=names)
    assert sorted(row for part in parts for row in part) == list(range(len(groups)))
    owners = [{groups[row] for row in part} for part in parts]
    assert sum(map(len, owners)) == len(set(groups))
    assert parts == split_shares(len(groups), shares, seed=seed, groups=groups, labels=names)


def test_labels_keep_their_share() -> None:
    """Each part has its share of each label to the row; labels too rare for that still fill the parts."""
    labels = ["a"] * 50 + ["b"] * 10
    train, validation = split_shares(60, (0.8, 0.2), seed=3, labels=labels)
    assert ([labels[row] for row in validation].count("a"), [labels[row] for row in validation].count("b")) == (10, 2)
    assert len(train) == 48
    parts = split_shares(100, (0.8, 0.1, 0.1), seed=3, labels=list(range(100)))
    assert [len(part) for part in parts] == [80, 10, 10]
    assert split_shares(60, (0.8, 0.2), seed=4, labels=labels)[1] != validation


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.stdout


def test_the_commands_write_new_files_only(tmp_path: Path) -> None:
    """repair, import and split write what they say, print an account, and never write over a file."""
    source = file_of(
        tmp_path / "a.jsonl", *(chat(f"Question {n} {'ab'[n % 2] * n}", f"Answer {n}") for n in range(20)), b"{"
    )
    fixed, made, parts = tmp_path / "fixed.jsonl", tmp_path / "made.jsonl", tmp_path / "parts"
    body = json.loads(run("data", "repair", source, "--out", fixed, "--step", "drop_invalid", "--json"))
    assert (body["lines_read"], body["lines_written"], body["dropped"]) == (21, 20, {"drop_invalid": 1})
    assert validate_file(fixed).verdict == "ok"
    assert "20 of 20 rows kept" in run("data", "import", fixed, "--out", made)
    assert json.loads(run("data", "split", fixed, "--out", parts, "--shares", "80/10/10", "--json"))["rows"] == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }
    lines = b"".join((parts / f"{name}.jsonl").read_bytes() for name in ("train", "validation", "test")).splitlines()
    assert sorted(lines) == sorted(fixed.read_bytes().splitlines())
    result = CliRunner().invoke(app, ["data", "split", str(fixed), "--out", str(parts)])
    assert isinstance(result.exception, InvalidRequest)
    for wrong in ("80", "80/30", "0/100", "a/b"):
        with pytest.raises(InvalidRequest):
            CliRunner().invoke(
                app, ["data", "split", str(fixed), "--out", "x", "--shares", wrong], catch_exceptions=False
            )
