"""The table of faults in docs/data-faults.md: each kind with the code and the message that it gets."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from smedje.data.forms import NAMES, Form, parse_item
from smedje.data.lines import LONGEST_LINE, Line
from smedje.data.validate import validate_file

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data-faults.md"
USER: dict[str, Any] = {"role": "user", "content": "Where is it?"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "On its way."}
CALL = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": "{}"}}
CALLING: dict[str, Any] = {"role": "assistant", "tool_calls": [CALL]}


def row(*messages: object, **columns: object) -> bytes:
    return json.dumps({"messages": list(messages), **columns}).encode()


FAULTS: list[tuple[str, bytes, str]] = [
    ("a byte-order mark inside the file", b"\xef\xbb\xbf" + row(USER, ANSWER), "invalid_json"),
    ("a NUL byte", b'{"messages": \x00[]}', "nul_character"),
    ("an escaped NUL character", row({**USER, "content": "a\x00b"}, ANSWER), "nul_character"),
    ("Latin-1 bytes", b'{"messages": [{"role": "user", "content": "\xe6ble"}]}', "invalid_utf8"),
    ("half a surrogate pair", b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "lone_surrogate"),
    ("NaN", row(USER, ANSWER, score=float("nan")), "invalid_json"),
    ("Infinity", row(USER, ANSWER, score=float("inf")), "invalid_json"),
    ("a cut line", b'{"messages": [{"role": "user", "con', "invalid_json"),
    ("single quotes", b"{'messages': []}", "invalid_json"),
    ("a trailing comma", b'{"messages": [],}', "invalid_json"),
    ("two objects on a line", row(USER, ANSWER) + b" " + row(USER, ANSWER), "invalid_json"),
    ("100,000 levels of nesting", b"[" * 100_000 + b"]" * 100_000, "invalid_json"),
    ("a line of more than 16 MiB", b"x" * (LONGEST_LINE + 10), "line_too_large"),
    ("a key twice in a message", b'{"messages": [{"role": "user", "role": "x", "content": "a"}]}', "duplicate_key"),
    ("a column twice", b'{"messages": [], "messages": []}', "duplicate_key"),
    ("a blank line", b"   ", "blank_line"),
    ("a list in place of an object", b"[1, 2]", "data_type"),
    ("no messages", b'{"text": "Hello"}', "missing_messages_list"),
    ("prompt and completion", b'{"prompt": "a", "completion": "b"}', "missing_messages_list"),
    ("an empty list of messages", b'{"messages": []}', "missing_messages_list"),
    ("a message that is a text", row("Hi", ANSWER), "message_data_type"),
    ("a message without a role", row({"content": "Hi"}, ANSWER), "message_missing_key"),
    ("a message without content", row({"role": "user"}, ANSWER), "message_missing_key"),
    ("a key that no format knows", row({**USER, "text": "x"}, ANSWER), "message_unrecognized_key"),
    ("a role that does not exist", row({**USER, "role": "human"}, ANSWER), "unrecognized_role"),
    ("an empty answer", row(USER, {**ANSWER, "content": ""}), "missing_content"),
    ("an answer of white space", row(USER, {**ANSWER, "content": " \n "}), "missing_content"),
    ("a number as content", row({**USER, "content": 3}, ANSWER), "missing_content"),
    (
        "an image",
        row({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER),
        "unsupported_content_part",
    ),
    ("a weight other than 0 and 1", row(USER, {**ANSWER, "weight": 2}), "invalid_weight"),
    ("only answers with weight 0", row(USER, {**ANSWER, "weight": 0}), "no_trained_message"),
    ("a weight on a user message", row({**USER, "weight": 1}, ANSWER), "weight_not_used"),
    ("no answer", row(USER), "example_missing_assistant_message"),
    ("a question at the end", row(USER, ANSWER, USER), "last_message_not_assistant"),
    ("an answer first", row(ANSWER, USER, ANSWER), "wrong_role_order"),
    ("two answers in a row", row(USER, ANSWER, ANSWER), "wrong_role_order"),
    ("a system message in the middle", row(USER, {"role": "system", "content": "x"}, ANSWER), "wrong_role_order"),
    ("two questions in a row", row(USER, USER, ANSWER), "consecutive_user_messages"),
    ("a template's token in a text", row(USER, {**ANSWER, "content": "Yes.<|im_end|>"}), "control_token_in_content"),
    (
        "a tool result without a call",
        row(USER, {"role": "tool", "tool_call_id": "c1", "content": "x"}, ANSWER),
        "wrong_role_order",
    ),
    (
        "a tool result for another call",
        row(USER, CALLING, {"role": "tool", "tool_call_id": "c9", "content": "x"}, ANSWER),
        "unknown_tool_call_id",
    ),
    (
        "a tool result that names no call",
        row(USER, CALLING, {"role": "tool", "content": "x"}, ANSWER),
        "missing_tool_call_id",
    ),
    ("a call without a function", row(USER, {**ANSWER, "tool_calls": [{}]}), "invalid_tool_calls"),
    (
        "arguments that are no JSON",
        row(USER, {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "x"}}]}),
        "tool_arguments_not_json",
    ),
    ("tools that are no list", row(USER, ANSWER, tools={}), "invalid_tools"),
    ("parallel_tool_calls as a number", row(USER, ANSWER, parallel_tool_calls=1), "invalid_parallel_tool_calls"),
    ("a copy of an earlier line", row({"role": "user", "content": "Question 1"}, ANSWER), "duplicate_example"),
]


PROMPT = {"messages": [USER]}


def pair(**columns: object) -> bytes:
    body: dict[str, object] = {"input": PROMPT, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER | NO]}
    return json.dumps({name: value for name, value in (body | columns).items() if value is not None}).encode()


NO = {"content": "No idea."}
OTHER_FAULTS: dict[Form, list[tuple[str, bytes, str]]] = {
    "preference": [
        ("a list in place of an object", b"[]", "data_type"),
        ("no input", pair(input=None), "missing_preference_input"),
        ("an input without messages", pair(input={}), "missing_preference_input"),
        ("a key of input that is not known", pair(input=PROMPT | {"seed": 1}), "preference_unrecognized_key"),
        ("one answer only", pair(non_preferred_output=None), "missing_preference_answers"),
        ("both spellings", pair(preferred_completion=[ANSWER]), "missing_preference_answers"),
        ("two messages as an answer", pair(preferred_output=[ANSWER, ANSWER]), "invalid_preference_answer"),
        ("a user message as an answer", pair(preferred_output=[USER]), "invalid_preference_answer"),
        ("the same answer twice", pair(non_preferred_output=[ANSWER]), "identical_answers"),
        ("an empty answer", pair(preferred_output=[{**ANSWER, "content": ""}]), "missing_content"),
        ("a prompt that ends with an answer", pair(input={"messages": [USER, ANSWER]}), "wrong_role_order"),
    ],
    "classification": [
        ("a list in place of an object", b"[]", "data_type"),
        ("no label", b'{"text": "a"}', "missing_label"),
        ("a number as label", b'{"text": "a", "label": 3}', "missing_label"),
        ("neither text nor messages", b'{"label": "a"}', "missing_text"),
        (
            "both text and messages",
            json.dumps({"text": "a", "messages": [USER], "label": "a"}).encode(),
            "missing_text",
        ),
        ("an empty text", b'{"text": " ", "label": "a"}', "missing_text"),
        ("an answer at the end", row(USER, ANSWER, label="a"), "wrong_role_order"),
        ("a role that does not exist", row({**USER, "role": "human"}, label="a"), "unrecognized_role"),
    ],
}


def good(number: int) -> bytes:
    return row({"role": "user", "content": f"Question {number}"}, ANSWER)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A file with each fault between good lines, and the faults' lines."""
    lines, places = [good(0), good(1)], []
    for number, (_, raw, _) in enumerate(FAULTS):
        places.append(len(lines) + 1)
        lines += [raw, *(good(10 * number + extra + 10) for extra in range(3))]
    path = tmp_path_factory.mktemp("faults") / "planted.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path, places


def test_exactly_the_planted_lines_are_told(planted: tuple[Path, list[int]]) -> None:
    """Each fault is told on its line with its code, and no good line is told."""
    path, places = planted
    problems = validate_file(path).problems
    told: dict[int, set[str]] = {problem.line: set() for problem in problems}
    for problem in problems:
        told[problem.line].add(problem.code)
    assert sorted(told) == places
    for (what, _, code), place in zip(FAULTS, places, strict=True):
        assert code in told[place], what


def test_two_processes_tell_the_same_as_one(planted: tuple[Path, list[int]]) -> None:
    """A file that is read in halves has the same problems on the same lines, copies across the halves included."""
    path, _ = planted
    assert validate_file(path, processes=2) == validate_file(path)


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", good(1) + b"\n\n\n", b"\n\n\n" + good(1), good(1), good(1) + b"\n\n" + good(2)]
)
def test_halves_of_odd_files_tell_the_same(tmp_path: Path, content: bytes) -> None:
    """Blank lines where the halves meet, one line, no line: as if it were read in one piece."""
    path = tmp_path / "odd.jsonl"
    path.write_bytes(content)
    assert validate_file(path, processes=2) == validate_file(path)


def test_the_fast_way_and_the_rules_agree(tmp_path: Path) -> None:
    """Lines that differ from plain ones by a detail are never taken for plain after plain ones were seen."""
    tricky = [
        b'{"messages": [{"role": "user", "content": "a", "r\\u006fle": "x"}, {"role": "assistant", "content": "b"}]}',
        row(USER, {**ANSWER, "content": "\\u003c|im_end|>"}).replace(b"\\\\u003c", b"\\u003c"),
        row(USER, {**ANSWER, "content": "\u2003\u2003"}),
        row(USER, ANSWER, note="\x00"),
        row(USER, ANSWER).replace(b"Where", b"\\ud800"),
        row(USER, ANSWER, note="x").replace(b'"x"', b'"\\udc00"'),
        row(USER, ANSWER, note="x").replace(b'"x"', b'"\xff"'),
        row(USER, ANSWER, tools=3),
        row(USER, {**ANSWER, "weight": 0}),
    ]
    for number, raw in enumerate(tricky):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(b"".join(good(i) + b"\n" for i in range(10)) + raw + b"\n")
        problems = validate_file(path).problems
        expected = [] if number == 3 else [11]
        assert sorted({problem.line for problem in problems}) == expected, (raw, problems)


def test_the_page_of_faults_is_what_the_validator_says(planted: tuple[Path, list[int]]) -> None:
    """docs/data-faults.md is written from the validator's own words. UPDATE_SNAPSHOTS=1 writes it anew."""
    path, places = planted
    problems = validate_file(path).problems
    lines = [
        "# What each fault in a data file is told as",
        "",
        "Each fault was planted in a file; this is what `smedje data check` says of its line.",
        "",
        "| fault | code | severity | field | message | what to do |",
        "|---|---|---|---|---|---|",
    ]
    for (what, _, code), place in zip(FAULTS, places, strict=True):
        found = next(problem for problem in problems if problem.line == place and problem.code == code)
        cells = (what, f"`{code}`", found.severity, f"`{found.path}`", found.message, found.remedy)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for form, faults in OTHER_FAULTS.items():
        lines += ["", f"## Of {NAMES[form]}", "", *lines[4:6]]
        for what, raw, code in faults:
            told = {problem.code: problem for problem in parse_item(Line(1, raw), form).problems}
            assert code in told, (what, told)
            found = told[code]
            cells = (what, f"`{code}`", found.severity, f"`{found.path}`", found.message, found.remedy)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    page = "\n".join(lines) + "\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page
