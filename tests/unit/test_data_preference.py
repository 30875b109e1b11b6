"""Preference files: both spellings, every problem with its line and place, and what is encoded."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.training_runs import preference_rows

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.data.counting import count_tokens
from smedje.data.preference import (
    SPELLINGS,
    encode_pairs,
    is_preference_file,
    parse_pairs,
    validate_preferences,
)
from smedje.data.validate import validate_file
from smedje.errors import InvalidData
from smedje.modeling.tiny_random import write_tiny_llama

USER = {"role": "user", "content": "Where is it?"}
GOOD = {"role": "assistant", "content": "On its way."}
BAD = {"role": "assistant", "content": "No idea."}
CHAT = json.dumps({"messages": [USER, GOOD]})


def pair(**changes: Any) -> dict[str, Any]:
    """A line, with keys replaced; a key set to None is left out."""
    body = {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD], **changes}
    return {key: value for key, value in body.items() if value is not None}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_both_spellings_give_the_same_pair(tmp_path: Path, spelling: tuple[str, str]) -> None:
    """preferred_output of the guide and preferred_completion of the schema mean the same."""
    path = write(tmp_path / "a.jsonl", {"input": {"messages": [USER]}, spelling[0]: [GOOD], spelling[1]: [BAD]})
    (line,) = parse_pairs(path)
    assert line.problems == ()
    assert line.pair is not None
    assert [m.content for m in line.pair.preferred.messages] == ["Where is it?", "On its way."]
    assert [m.content for m in line.pair.other.messages] == ["Where is it?", "No idea."]


@pytest.mark.parametrize(
    ("line", "path", "code"),
    [
        ([1], "$", "data_type"),
        ("{", "$", "invalid_json"),
        (pair(input=None), "$.input", "missing_preference_input"),
        (pair(input={"messages": []}), "$.input", "missing_preference_input"),
        (pair(input={"messages": [USER], "extra": 1}), "$.input.extra", "preference_unrecognized_key"),
        (pair(preferred_output=None), "$", "missing_preference_answers"),
        (pair(preferred_completion=[GOOD]), "$", "missing_preference_answers"),
        (pair(preferred_output="On its way."), "$.preferred_output", "invalid_preference_answer"),
        (pair(preferred_output=[GOOD, GOOD]), "$.preferred_output", "invalid_preference_answer"),
        (pair(non_preferred_output=[USER]), "$.non_preferred_output", "invalid_preference_answer"),
        (pair(non_preferred_output=[GOOD]), "$", "identical_answers"),
        (pair(preferred_output=[{**GOOD, "content": ""}]), "$.preferred_output[0].content", "missing_content"),
        (pair(input={"messages": [{**USER, "role": "x"}]}), "$.input.messages[0].role", "unrecognized_role"),
        (pair(input={"messages": [USER, GOOD]}), "$.preferred_output[0].role", "wrong_role_order"),
    ],
)
def test_a_bad_pair_is_an_error_with_its_place(tmp_path: Path, line: Any, path: str, code: str) -> None:
    """Each problem names line, JSON path and code; the line gives no pair."""
    second = list(parse_pairs(write(tmp_path / "a.jsonl", pair(), line)))[1]
    assert second.pair is None
    assert second.line == 2
    assert (path, code, "error") in [(p.path, p.code, p.severity) for p in second.problems]
    write_tiny_llama(tmp_path / "model")
    tokenizer = load_chat_tokenizer(tmp_path / "model")
    with pytest.raises(InvalidData, match="Line 2"):
        encode_pairs(tmp_path / "a.jsonl", tokenizer, max_tokens=400)


def test_report_counts_pairs_and_problems(tmp_path: Path) -> None:
    """Ten good pairs are fine; nine are too few; statistics count the prompt with its better answer."""
    good = tmp_path / "good.jsonl"
    good.write_bytes(preference_rows(10))
    report = validate_preferences(good)
    assert report.verdict == "ok", report.problems
    assert report.statistics.valid_examples == 10
    assert report.statistics.messages_by_role["assistant"] == 10
    few = write(tmp_path / "few.jsonl", *[pair()] * 8, "", pair(input=None))
    found = validate_preferences(few)
    assert (found.verdict, found.statistics.examples) == ("error", 9)
    assert {p.code for p in found.problems} == {
        "invalid_n_examples",
        "blank_line",
        "duplicate_example",
        "missing_preference_input",
    }
    assert found.statistics.duplicate_examples == 7


@pytest.mark.parametrize(
    ("first", "is_pairs"), [(pair(), True), (pair(input=None), True), (CHAT, False), ("{", False), ("[]", False)]
)
def test_a_file_of_pairs_is_told_from_chat(tmp_path: Path, first: Any, is_pairs: bool) -> None:
    """The keys of the first line decide; a byte-order mark and blank lines before it do not matter."""
    text = first if isinstance(first, str) else json.dumps(first)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\n" + text.encode())
    assert is_preference_file(path) is is_pairs


def test_only_the_answers_are_labelled(tmp_path: Path) -> None:
    """Earlier answers in the prompt are context; equal prompts share a group; too long answers name their line."""
    write_tiny_llama(tmp_path / "model")
    tokenizer = load_chat_tokenizer(tmp_path / "model")
    longer = pair(input={"messages": [USER, GOOD, USER]})
    path = write(tmp_path / "a.jsonl", pair(), longer, pair(non_preferred_output=[{**BAD, "content": "Who knows."}]))
    dataset = encode_pairs(path, tokenizer, max_tokens=400)
    assert len(dataset) == 3
    assert dataset.groups[0] == dataset.groups[2] != dataset.groups[1]
    labelled = [sum(weight > 0 for weight in dataset.answers.example(row)[1]) for row in range(6)]
    assert labelled[0] == labelled[2]
    assert labelled[1] == labelled[3]
    counted = count_tokens(path, tokenizer, max_tokens=max(dataset.answers.length(r) for r in range(2)))
    problems, tokens = counted.problems, counted.statistics
    assert [(p.line, p.code) for p in problems] == [(2, "example_too_long")]
    assert tokens.examples == 3
    assert tokens.trained_tokens == sum(labelled)
    with pytest.raises(InvalidData, match=r"Line 1.*tokens"):
        encode_pairs(path, tokenizer, max_tokens=16)


def test_chat_checks_do_not_take_pairs(tmp_path: Path) -> None:
    """The chat checker refuses a preference file, so that the two forms are never mixed up."""
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(preference_rows(10))
    assert validate_file(path).verdict == "error"
