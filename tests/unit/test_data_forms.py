"""Labelled texts and preference pairs through every tool that chat files go through."""

import json
from pathlib import Path
from typing import Any

import pytest
from sample_models import write_model_folder

from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from smedje.data.classification import encode_labelled
from smedje.data.counting import count_tokens
from smedje.data.encode import encode_file
from smedje.data.forms import form_of, read_items, validate_any
from smedje.data.insights import look_at
from smedje.data.labels import answer_labels
from smedje.data.leaks import find_leaks
from smedje.data.preference import encode_pairs
from smedje.data.repair import Beside, Repair, repair_file
from smedje.errors import InvalidRequest

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(question: str, good: str, bad: str) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": question}]},
        "preferred_output": [{"role": "assistant", "content": good}],
        "non_preferred_output": [{"role": "assistant", "content": bad}],
    }


def chat(*texts: str, **columns: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)], **columns}


def labelled(count: int = 12) -> Rows:
    return [{"text": f"text number {n}", "label": "ab"[n % 2]} for n in range(count)]


def repaired(path: Path, *steps: str, beside: Beside | None = None) -> tuple[Rows, Repair]:
    out: list[bytes] = []
    done = repair_file(path, out.append, steps=steps, beside=beside)
    return [json.loads(line) for line in out], done


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return load_chat_tokenizer(write_model_folder(tmp_path_factory.mktemp("m") / "smollm2", "smollm2"))


def test_the_first_line_tells_the_form(tmp_path: Path) -> None:
    """A chat with a column `label` stays a chat; a text or an unanswered question with a label is a labelled text."""
    cases: list[tuple[str, dict[str, Any]]] = [
        ("chat", chat("Q", "A")),
        ("chat", chat("Q", "A", label="x")),
        ("chat", {"text": "no label"}),
        ("classification", {"text": "t", "label": "x"}),
        ("classification", chat("Q", label="x")),
        ("preference", pair("Q", "a", "b")),
    ]
    for number, (form, row) in enumerate(cases):
        assert form_of(write(tmp_path / f"{number}.jsonl", [row])) == form


LABEL_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"text": "t"}, "missing_label", "$.label"),
    ({"text": "t", "label": 3}, "missing_label", "$.label"),
    ({"text": " ", "label": "a"}, "missing_text", "$.text"),
    ({"label": "a"}, "missing_text", "$"),
    ({"text": "t", "messages": [], "label": "a"}, "missing_text", "$"),
    ({"messages": "m", "label": "a"}, "missing_text", "$.messages"),
    (chat("Q", "A", label="a"), "wrong_role_order", "$.label.role"),
    ({"messages": [{"role": "human", "content": "x"}], "label": "a"}, "unrecognized_role", "$.messages[0].role"),
    ({"text": "end <|im_end|>", "label": "a"}, "control_token_in_content", "$.text"),
    ({"text": "text number 0", "label": "a"}, "duplicate_example", "$"),
]


def test_every_fault_of_a_labelled_line_is_told(tmp_path: Path) -> None:
    """Line, code and place, in one pass; good lines are not told; too few labels are an error of the file."""
    rows = labelled() + [row for row, _, _ in LABEL_FAULTS]
    path = write(tmp_path / "a.jsonl", rows)
    with path.open("ab") as stream:
        stream.write(b"{\n")
    report = validate_any(path)
    told = [(one.line, one.code, one.path) for one in report.problems]
    assert told == [
        *((13 + n, code, place) for n, (_, code, place) in enumerate(LABEL_FAULTS)),
        (13 + len(LABEL_FAULTS), "invalid_json", "$"),
    ]
    assert report.statistics.examples == 12 + len(LABEL_FAULTS) + 1
    same = validate_any(write(tmp_path / "b.jsonl", [{"text": f"t{n}", "label": "a"} for n in range(12)]))
    assert [one.code for one in same.problems] == ["invalid_labels"]
    assert [one.code for one in validate_any(write(tmp_path / "c.jsonl", labelled(3))).problems] == [
        "invalid_n_examples"
    ]


def test_findings_are_made_of_every_form(tmp_path: Path) -> None:
    """Copies, private data in the worse answer too, contradictions by label or preference, labels as labels."""
    texts = [*labelled(20), {"text": "text number 0", "label": "b"}, {"text": "mail ida@post.dk", "label": "a"}]
    seen = look_at(write(tmp_path / "a.jsonl", texts))
    found = {one.code: one.lines for one in seen.findings}
    assert (seen.form, seen.labels) == ("classification", {"a": 11, "b": 11})
    assert found == {"contradictory_answer": (21,), "private_email": (22,)}
    pairs = [
        pair("Where is it?", "It left Odense.", "No idea."),
        pair("Where is it?", "It left Aarhus.", "No idea."),
        pair("Where is it?", "No idea.", "It left Odense."),
        pair("Who helps me?", "Write to support.", "Write to ida@post.dk"),
        pair("Who helps me?", "Write to support.", "Write to ida@post.dk"),
    ]
    seen = look_at(write(tmp_path / "b.jsonl", pairs))
    found = {one.code: one.lines for one in seen.findings}
    assert found == {"contradictory_answer": (3,), "private_email": (4, 5), "duplicate_example": (5,)}
    leaks = find_leaks(write(tmp_path / "c.jsonl", pairs[:1]), write(tmp_path / "d.jsonl", pairs[3:4] + pairs[:1]))
    assert [(one.code, one.lines, one.repair) for one in leaks] == [("leaked_example", (2,), "drop_leaks")]


def test_repair_keeps_pairs_and_labelled_texts_what_they_are(tmp_path: Path) -> None:
    """No step takes a pair for a broken chat; texts of both answers and of labelled lines are edited."""
    pairs = [
        pair("Q1", " yes ", "no"),
        pair("Q1", "yes", "no"),
        pair("Q2", "same", "same"),
        pair("Q3", "no", "yes"),
        pair("Q3", "mail ida@post.dk", "no, mail ib@post.dk"),
    ]
    path = write(tmp_path / "a.jsonl", pairs)
    lines, done = repaired(path, "trim", "redact", "drop_invalid", "drop_duplicates")
    assert lines == [pair("Q1", "yes", "no"), pairs[3], pair("Q3", "mail [EMAIL]", "no, mail [EMAIL]")]
    assert (dict(done.dropped), dict(done.changed)) == (
        {"drop_duplicates": 1, "drop_invalid": 1},
        {"trim": 1, "redact": 1},
    )
    texts = [{"text": " a ", "label": "x"}, {"text": "a", "label": "y"}, {"text": "b"}, {"text": "N/A", "label": "x"}]
    rows, done = repaired(write(tmp_path / "b.jsonl", texts), "trim", "drop_invalid", "drop_contradictions")
    assert rows == [{"text": "a", "label": "x"}, texts[3]]


def test_lines_are_cleaned_and_merged(tmp_path: Path) -> None:
    """NUL, template tokens, unknown keys and idle weights go; neighbours of one role are joined; others keep bytes."""
    user, said = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    rows: Rows = [
        {"messages": [user, said]},
        {"messages": [{**user, "weight": 1, "id": 3}, {**said, "content": "A<|im_end|>\x00"}]},
        {"messages": [user, user, said, {**said, "content": "B"}]},
        {"messages": [user, {**said, "weight": 0}, said]},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    with path.open("ab") as stream:
        stream.write(b"\xef\xbb\xbf" + json.dumps(rows[0]).encode() + b"\x00\n")
    lines, done = repaired(path, "clean", "merge")
    merged = {"messages": [{**user, "content": "Q\n\nQ"}, {**said, "content": "A\n\nB"}]}
    assert lines == [rows[0], rows[0], merged, rows[3], rows[0]]
    assert [(one.line, one.step) for one in done.changes] == [(2, "clean"), (3, "merge"), (5, "clean")]


def test_leaks_and_too_long_examples_are_dropped(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Each step needs its companion, says so, and drops exactly what the findings name."""
    rows = [chat(f"Question {n} {'ab' * n}", f"Answer {n}") for n in range(4)]
    path, other = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows[1:2])
    assert repaired(path, "drop_leaks", beside=Beside(against=other))[0] == [rows[0], *rows[2:]]
    long = chat("word " * 100, "A")
    write(path, [*rows, long])
    short = Beside(tokenizer=tokenizer, max_tokens=150)
    lines, done = repaired(path, "drop_too_long", beside=short)
    counted = count_tokens(path, tokenizer, max_tokens=150)
    assert [one.line for one in counted.problems] == [one.line for one in done.changes] == [5]
    assert lines == rows
    assert counted.statistics.tokens_over_limit == counted.rows.tokens[4] - 150
    for step in ("drop_leaks", "drop_too_long"):
        with pytest.raises(InvalidRequest, match=f"{step} needs"):
            repaired(path, step)


def test_counts_are_those_of_training(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Rows, tokens, trained tokens, groups and labels equal those of the encoded file, for each form."""
    chats = [chat("Same question", f"Answer {n}") for n in range(3)] + [chat(f"Q {n}", "yes no"[:3]) for n in range(9)]
    path = write(tmp_path / "a.jsonl", chats)
    rows, encoded = count_tokens(path, tokenizer, max_tokens=None).rows, encode_file(path, tokenizer, max_tokens=999)
    assert list(rows.tokens) == [encoded.length(row) for row in range(len(encoded))]
    assert sum(rows.trained) == encoded.num_trained_tokens
    assert same_parts(rows.groups, encoded.groups)
    pairs = write(tmp_path / "b.jsonl", [pair("Q", f"good {n}", "bad") for n in range(3)] + [pair("R", "a", "b")])
    rows, both = count_tokens(pairs, tokenizer, max_tokens=None).rows, encode_pairs(pairs, tokenizer, max_tokens=999)
    assert list(rows.tokens) == [both.length(row) for row in range(len(both))]
    assert same_parts(rows.groups, both.groups)
    texts = write(tmp_path / "c.jsonl", [*labelled(), {"text": "text number 3", "label": "a"}])
    rows, known = count_tokens(texts, tokenizer, max_tokens=None).rows, encode_labelled(texts, tokenizer, max_tokens=99)
    assert list(rows.tokens) == [known.length(row) for row in range(len(known))]
    assert same_parts(rows.groups, known.groups)
    assert rows.labels is not None
    assert same_parts(rows.labels, known.classes)
    assert [item.example is not None for item in read_items(texts)] == [True] * 13


def test_labels_are_answers_that_repeat(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Few short answers that repeat are labels, and held-out rows get their share of each; answers of chats are not."""
    path = write(tmp_path / "a.jsonl", [chat(f"Text {n}", "rare" if n % 10 == 0 else "usual") for n in range(100)])
    labels = answer_labels(path)
    assert labels is not None
    assert list(labels.values()).count("rare") == 10
    rows = count_tokens(path, tokenizer, max_tokens=None).rows
    for seed in range(5):
        training, held = rows.split(seed=seed, fraction=0.2)
        assert (len(training), [labels[row + 1] for row in held].count("rare"), len(held)) == (80, 2, 20)
    assert answer_labels(write(tmp_path / "b.jsonl", [chat(f"Q{n}", f"Answer {n}") for n in range(60)])) is None
    assert answer_labels(write(tmp_path / "c.jsonl", [pair(f"Q{n}", "a", "b") for n in range(60)])) is None


def same_parts(first: Any, second: Any) -> bool:
    """Whether two sequences of names part their rows alike."""
    pairs = set(zip(first, second, strict=True))
    return len(pairs) == len(set(first)) == len(set(second))
