import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smedje.data.lines import LONGEST_LINE
from smedje.data.parse import parse_line, parse_lines, read_examples
from smedje.data.problems import KEPT_PROBLEMS, Problem
from smedje.data.report import report_to_dict, report_to_json
from smedje.data.validate import validate_file

ROOT = Path(__file__).resolve().parents[2]
USER: dict[str, Any] = {"role": "user", "content": "Where is it?"}
ASSISTANT: dict[str, Any] = {"role": "assistant", "content": "On its way."}
CALL = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": "{}"}}
CALLING: dict[str, Any] = {"role": "assistant", "tool_calls": [CALL]}
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "c1", "content": "Odense"}


def line(*messages: object, **columns: object) -> bytes:
    return json.dumps({"messages": list(messages), **columns}).encode()


def codes(raw: bytes) -> list[tuple[str, str, str]]:
    return [(problem.path, problem.code, problem.severity) for problem in parse_line(raw, 7).problems]


def write(path: Path, lines: list[bytes], *, end: bytes = b"\n") -> Path:
    path.write_bytes(b"".join(one + end for one in lines))
    return path


def numbered(count: int) -> list[bytes]:
    return [line({"role": "user", "content": f"Question {i}"}, ASSISTANT) for i in range(count)]


GOOD = [
    line(USER, ASSISTANT),
    line(
        {"role": "system", "content": "Be brief."}, USER, ASSISTANT, USER, {**ASSISTANT, "weight": 0}, USER, ASSISTANT
    ),
    line({"role": "developer", "content": "Be brief."}, USER, {**ASSISTANT, "weight": 1}),
    line({**USER, "name": "Ida"}, ASSISTANT, prompt_id="x", source={"a": 1}),
    line({"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ASSISTANT),
    line(USER, CALLING, RESULT, ASSISTANT, tools=[{"type": "function", "function": {"name": "track"}}]),
    line(USER, {"role": "assistant", "content": None, "refusal": "I cannot."}),
    line(
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "track", "arguments": "{}"}},
        {"role": "function", "name": "track", "content": "Odense"},
        ASSISTANT,
        functions=[{"name": "track"}],
    ),
]


@pytest.mark.parametrize("raw", GOOD)
def test_good_line_has_no_problems(raw: bytes) -> None:
    """System, developer, tool and function messages, weights, names, parts, refusals and extra columns are accepted."""
    parsed = parse_line(raw, 1)
    assert parsed.problems == ()
    assert parsed.example is not None
    assert parsed.example.messages[-1].role == "assistant"


BAD = [
    (b"[1, 2]", "$", "data_type"),
    (b'"text"', "$", "data_type"),
    (b"null", "$", "data_type"),
    (b"{}", "$", "missing_messages_list"),
    (b'{"messages": []}', "$.messages", "missing_messages_list"),
    (b'{"messages": "Hi"}', "$.messages", "missing_messages_list"),
    (b'{"prompt": "a", "completion": "b"}', "$", "missing_messages_list"),
    (line("Hi", ASSISTANT), "$.messages[0]", "message_data_type"),
    (line({"content": "Hi"}, ASSISTANT), "$.messages[0]", "message_missing_key"),
    (line({"role": "user"}, ASSISTANT), "$.messages[0]", "message_missing_key"),
    (line({**USER, "text": "x"}, ASSISTANT), "$.messages[0].text", "message_unrecognized_key"),
    (line({**USER, "role": "human"}, ASSISTANT), "$.messages[0].role", "unrecognized_role"),
    (line({**USER, "role": ["user"]}, ASSISTANT), "$.messages[0].role", "unrecognized_role"),
    (line({**USER, "content": ""}, ASSISTANT), "$.messages[0].content", "missing_content"),
    (line({**USER, "content": " \n"}, ASSISTANT), "$.messages[0].content", "missing_content"),
    (line({**USER, "content": None}, ASSISTANT), "$.messages[0].content", "missing_content"),
    (line({**USER, "content": 3}, ASSISTANT), "$.messages[0].content", "missing_content"),
    (line(USER, {"role": "assistant", "content": None}), "$.messages[1].content", "missing_content"),
    (line({**USER, "content": []}, ASSISTANT), "$.messages[0].content", "missing_content"),
    (
        line({**USER, "content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT),
        "$.messages[0].content[0]",
        "unsupported_content_part",
    ),
    (line({**USER, "content": "a\x00b"}, ASSISTANT), "$.messages[0].content", "nul_character"),
    (line({**USER, "name": 3}, ASSISTANT), "$.messages[0].name", "invalid_name"),
    (line(USER, {**ASSISTANT, "weight": 2}), "$.messages[1].weight", "invalid_weight"),
    (line(USER, {**ASSISTANT, "weight": 0.5}), "$.messages[1].weight", "invalid_weight"),
    (line(USER, {**ASSISTANT, "weight": True}), "$.messages[1].weight", "invalid_weight"),
    (
        line(USER, ASSISTANT).replace(b'{"messages"', b'{"weight": 0, "messages"', 1),
        "$.weight",
        "invalid_example_weight",
    ),
    (line(USER, {**ASSISTANT, "weight": 0}), "$.messages", "no_trained_message"),
    (line(USER), "$.messages", "example_missing_assistant_message"),
    (line(USER, ASSISTANT, USER), "$.messages[2].role", "last_message_not_assistant"),
    (line(ASSISTANT), "$.messages[0].role", "wrong_role_order"),
    (line(USER, ASSISTANT, ASSISTANT), "$.messages[2].role", "wrong_role_order"),
    (line(USER, {"role": "system", "content": "x"}, ASSISTANT), "$.messages[1].role", "wrong_role_order"),
    (line(USER, {**RESULT}, ASSISTANT), "$.messages[1].role", "wrong_role_order"),
    (
        line(USER, CALLING, {"role": "tool", "content": "x"}, ASSISTANT),
        "$.messages[2]",
        "missing_tool_call_id",
    ),
    (
        line(USER, CALLING, {**RESULT, "tool_call_id": "c2"}, ASSISTANT),
        "$.messages[2].tool_call_id",
        "unknown_tool_call_id",
    ),
    (line(USER, {**ASSISTANT, "tool_calls": {}}), "$.messages[1].tool_calls", "invalid_tool_calls"),
    (line(USER, {**ASSISTANT, "tool_calls": [{}]}), "$.messages[1].tool_calls[0]", "invalid_tool_calls"),
    (line(USER, {**ASSISTANT, "function_call": {}}), "$.messages[1].function_call", "invalid_tool_calls"),
    (line(USER, ASSISTANT, tools={}), "$.tools", "invalid_tools"),
    (line(USER, ASSISTANT, tools=[{"name": "x"}]), "$.tools", "invalid_tools"),
    (line(USER, ASSISTANT, functions=[{}]), "$.functions", "invalid_tools"),
    (line(USER, ASSISTANT, parallel_tool_calls=1), "$.parallel_tool_calls", "invalid_parallel_tool_calls"),
    (b'{"messages": [', "$", "invalid_json"),
    (b"{'messages': []}", "$", "invalid_json"),
    (b'{"messages": [1,]}', "$", "invalid_json"),
    (b'{"messages": NaN}', "$", "invalid_json"),
    (b'{"a": 1} {"b": 2}', "$", "invalid_json"),
    (b"[" * 200_000, "$", "invalid_json"),
    (b'{"messages": [], "messages": []}', "$.messages", "duplicate_key"),
    (b'{"messages": "\xff"}', "$", "invalid_utf8"),
    (b"\xff\xfe{\x00}\x00", "$", "invalid_utf8"),
    (b'{"messages": "\xed\xa0\x80"}', "$", "invalid_utf8"),
    (b"{\x00}", "$", "nul_character"),
    (b'{"messages": "\\ud800"}', "$", "lone_surrogate"),
    (b'{"messages": "\\udc00 x"}', "$", "lone_surrogate"),
]


@pytest.mark.parametrize(("raw", "path", "code"), BAD)
def test_bad_line_is_an_error_with_its_field(raw: bytes, path: str, code: str) -> None:
    """Each fault has its code, points to its field, and leaves no example."""
    assert (path, code, "error") in codes(raw)
    assert parse_line(raw, 7).example is None


SUSPICIOUS = [
    (line(USER, USER, ASSISTANT), "$.messages[1].role", "consecutive_user_messages"),
    (line({**ASSISTANT, "weight": 0}, USER, ASSISTANT), "$.messages[0].role", "wrong_role_order"),
    (line({**USER, "weight": 1}, ASSISTANT), "$.messages[0].weight", "weight_not_used"),
    (line({**USER, "content": "x<|im_end|>"}, ASSISTANT), "$.messages[0].content", "control_token_in_content"),
    (line({**USER, "content": "[INST] x"}, ASSISTANT), "$.messages[0].content", "control_token_in_content"),
    (line({**USER, "content": "<end_of_turn>"}, ASSISTANT), "$.messages[0].content", "control_token_in_content"),
    (
        line(
            USER,
            {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "x"}}]},
            RESULT,
            ASSISTANT,
        ),
        "$.messages[1].tool_calls[0]",
        "tool_arguments_not_json",
    ),
]


@pytest.mark.parametrize(("raw", "path", "code"), SUSPICIOUS)
def test_suspicious_line_is_a_warning_and_still_an_example(raw: bytes, path: str, code: str) -> None:
    """A warning points to its field and does not keep the line from training."""
    assert codes(raw) == [(path, code, "warning")]
    assert parse_line(raw, 7).example is not None


def test_all_problems_of_a_line_are_told() -> None:
    """Not the first fault only, each with its own field, line, value found and remedy."""
    problems = parse_line(
        line({"role": "usr", "content": "", "x": 1}, {**ASSISTANT, "weight": 5}, tools=3), 12
    ).problems
    assert [problem.code for problem in problems] == [
        "invalid_tools",
        "message_unrecognized_key",
        "unrecognized_role",
        "missing_content",
        "invalid_weight",
    ]
    assert {problem.line for problem in problems} == {12}
    assert all(problem.message.endswith(".") and problem.remedy.endswith(".") for problem in problems)
    assert "'usr'" in problems[2].message


def test_json_fault_tells_the_column_in_characters() -> None:
    """The column counts characters, not bytes, so that an editor jumps to the right place."""
    for text, told in [
        ('{"æøå": tru}', "column 9: Expecting value"),
        ('{"a": 1', "column 8: the line ends too early"),
        ('{"æ": NaN}', "column 7: NaN is not a JSON value"),
        ('{"æ": 1} {"b": 2}', "column 10: Extra data"),
        ('{"a": 1e999}', "Not valid JSON: Number out of range"),
        ('{"\\\\ud800 \\ud83d\\ude42": "\\udc00"}', "Column 27 holds half a surrogate pair"),
    ]:
        (problem,) = parse_line(text.encode(), 1).problems
        assert told in problem.message


def test_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    """A file as Azure asks for it gives the same examples as a plain one."""
    plain = write(tmp_path / "a.jsonl", numbered(3))
    marked = tmp_path / "b.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    assert list(read_examples(marked)) == list(read_examples(plain))
    assert [example.line for example in read_examples(marked)] == [1, 2, 3]


def test_blank_lines_are_ignored_at_the_end_and_told_elsewhere(tmp_path: Path) -> None:
    """Line numbers stay those of the file."""
    one, two = numbered(2)
    path = write(tmp_path / "a.jsonl", [one, b"", b"  ", two, b"", b" "])
    parsed = list(parse_lines(path))
    assert [entry.line for entry in parsed] == [1, 2, 3, 4]
    assert [[problem.code for problem in entry.problems] for entry in parsed] == [
        [],
        ["blank_line"],
        ["blank_line"],
        [],
    ]
    assert [example.line for example in read_examples(io.BytesIO(path.read_bytes()))] == [1, 4]


def test_line_that_is_too_large_is_told_and_skipped() -> None:
    """A line above the limit is an error; the next line is read as if nothing had happened."""
    stream = io.BytesIO(b"x" * (LONGEST_LINE * 2 + 5) + b"\n" + numbered(1)[0] + b"\n")
    first, second = parse_lines(stream)
    assert [problem.code for problem in first.problems] == ["line_too_large"]
    assert second.line == 2
    assert second.example is not None


def test_report_of_a_good_file(tmp_path: Path) -> None:
    """No problems, the verdict ok, and statistics that can be counted by hand."""
    system = {"role": "system", "content": "Be brief."}
    lines = [line(system, USER, {"role": "assistant", "content": "x" * (i + 1)}) for i in range(10)]
    lines.append(line(USER, ASSISTANT, USER, ASSISTANT))
    path = write(tmp_path / "a.jsonl", lines)
    report = validate_file(path)
    assert report.problems == ()
    assert report.verdict == "ok"
    found = report.statistics
    assert (found.examples, found.valid_examples, found.bytes) == (11, 11, path.stat().st_size)
    assert found.messages_by_role == {"system": 10, "user": 12, "assistant": 12}
    assert found.system_prompt_share == pytest.approx(10 / 11)
    assert found.assistant_characters is not None
    assert (found.assistant_characters.min, found.assistant_characters.max) == (1, 11)
    assert found.messages_per_example is not None
    assert found.messages_per_example.total == 34


def test_report_has_one_json_shape(tmp_path: Path) -> None:
    """Problems with the six documented fields, statistics, verdict and summary; the same as bytes."""
    report = validate_file(write(tmp_path / "a.jsonl", [*numbered(9), b"{", line(USER, USER, ASSISTANT)]))
    body = report_to_dict(report)
    assert list(body) == ["problems", "statistics", "verdict", "summary"]
    assert body["problems"][0] == {
        "line": 10,
        "path": "$",
        "code": "invalid_json",
        "severity": "error",
        "message": "Not valid JSON at column 2: the line ends too early.",
        "remedy": "Write one complete JSON object on the line, with double quotes and no trailing comma.",
    }
    assert body["verdict"] == "error"
    assert body["summary"].startswith("Not ready: 1 error in 11 examples (1 x invalid_json).")
    assert json.loads(report_to_json(report)) == body
    assert body["statistics"]["problem_codes"] == {"invalid_json": 1, "consecutive_user_messages": 1}


def test_too_few_examples_is_told_in_openai_words(tmp_path: Path) -> None:
    """Fewer than ten examples is an error of the whole file, line 0."""
    (problem,) = validate_file(write(tmp_path / "a.jsonl", numbered(9))).problems
    assert (problem.line, problem.code) == (0, "invalid_n_examples")
    assert problem.message == "Training file has 9 examples, but must have at least 10 examples."
    (one,) = validate_file(write(tmp_path / "b.jsonl", numbered(1))).problems
    assert "has 1 example," in one.message
    assert validate_file(write(tmp_path / "c.jsonl", numbered(1)), fewest_examples=1).problems == ()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"   \r\n"])
def test_empty_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    """Nothing, blank lines or a byte-order mark alone are no data."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    report = validate_file(path)
    assert [problem.code for problem in report.problems] == ["empty_file"]
    assert report.verdict == "error"


def test_copies_are_told_with_the_line_they_repeat(tmp_path: Path) -> None:
    """An exact copy of a conversation is a warning even when other columns or the spelling of the JSON differ."""
    lines = [
        *numbered(10),
        json.dumps({"id": 9, "messages": json.loads(numbered(4)[3])["messages"]}, indent=None).encode(),
    ]
    report = validate_file(write(tmp_path / "a.jsonl", lines))
    (problem,) = report.problems
    assert (problem.line, problem.code, problem.severity) == (11, "duplicate_example", "warning")
    assert "line 4" in problem.message
    assert report.statistics.duplicate_examples == 1
    assert report.verdict == "warning"


def test_a_thousand_problems_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    """Errors have room before warnings, the counts are complete, the order is that of the lines."""
    lines = [line(USER, {"role": "user", "content": f"{i}"}, ASSISTANT) for i in range(1500)] + [b"{"] * 700
    report = validate_file(write(tmp_path / "a.jsonl", lines))
    assert len(report.problems) == KEPT_PROBLEMS
    assert sum(problem.severity == "error" for problem in report.problems) == 700
    assert (report.statistics.errors, report.statistics.warnings) == (700, 1500)
    assert [problem.line for problem in report.problems] == sorted(problem.line for problem in report.problems)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "role", "content", "weight", "tool_calls", "tools", "function", "name", "type"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "tool", "function", "developer"]) | JSON_VALUES,
        "content": st.text(max_size=5) | JSON_VALUES,
        "weight": JSON_VALUES,
        "name": JSON_VALUES,
        "tool_calls": JSON_VALUES,
        "tool_call_id": JSON_VALUES,
        "function_call": JSON_VALUES,
        "refusal": JSON_VALUES,
    },
)
EXAMPLES = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, max_size=4)}, optional={"tools": JSON_VALUES, "functions": JSON_VALUES}
)


@given(value=JSON_VALUES | EXAMPLES)
@settings(max_examples=400)
def test_no_json_value_breaks_the_rules(value: object) -> None:
    """Any JSON is either an example or has an error; nothing raises, and every problem can be shown."""
    parsed = parse_line(json.dumps(value).encode(), 1)
    assert (parsed.example is None) == any(problem.severity == "error" for problem in parsed.problems)
    assert all(isinstance(problem, Problem) and problem.message and problem.remedy for problem in parsed.problems)


@given(raw=st.binary(max_size=60))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    """Any bytes are an example, a problem, or nothing."""
    for parsed in parse_lines(io.BytesIO(raw)):
        assert parsed.example is not None or parsed.problems


def test_every_problem_code_is_documented() -> None:
    """docs/data-format.md lists each code that the data package and the chat template can give."""
    page = (ROOT / "docs" / "data-format.md").read_text(encoding="utf-8").partition("### Errors")[2]
    documented = set(re.findall(r"^\| `(\w+)`", page, re.M))
    tested = {code for _, _, code in BAD + SUSPICIOUS}
    whole = {"invalid_n_examples", "empty_file", "line_too_large", "blank_line", "duplicate_example"}
    model = {"example_too_long", "chat_template_error"}
    assert documented == tested | whole | model
