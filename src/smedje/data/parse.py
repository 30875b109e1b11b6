"""Bytes of a chat data file to examples with their line numbers. Knows JSON and the chat format; knows no tokens."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec

from smedje.data.keys import check_keys
from smedje.data.lines import LONGEST_LINE, Line, read_lines
from smedje.data.problems import Problem
from smedje.data.rules import check_example
from smedje.errors import InvalidData

_DECODER = msgspec.json.Decoder()
_SURROGATE = re.compile("[\ud800-\udfff]")
# An escaped backslash, a whole pair, or (as group 1) half of one.
_ESCAPED_SURROGATE = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


@dataclass(frozen=True)
class Message:
    """One message. content: its text, text parts joined, None when there are only calls. weight: None counts as 1."""

    role: str
    content: str | None = None
    name: str | None = None
    weight: float | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The message in OpenAI's form, with only the keys that say something."""
        body: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            body["tool_calls"] = list(self.tool_calls)
        for key, value in (("name", self.name), ("weight", self.weight), ("tool_call_id", self.tool_call_id)):
            if value is not None:
                body[key] = value
        return body


@dataclass(frozen=True)
class ChatExample:
    """One checked line of a chat data file. line: 1-based. tools: OpenAI-shaped function tools.

    weight: how much each trained token of the line counts beside those of other lines.
    """

    line: int
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    parallel_tool_calls: bool | None = None
    weight: float = 1.0

    def to_messages(self) -> list[dict[str, Any]]:
        """The messages in OpenAI's form, for a chat template."""
        return [message.to_dict() for message in self.messages]


@dataclass(frozen=True)
class ParsedLine:
    """What a line turned out to be. example is None when a problem is an error."""

    line: int
    example: ChatExample | None
    problems: tuple[Problem, ...]


def parse_line(raw: bytes, line: int) -> ParsedLine:
    """The example of one line with all problems of the line.

    raw: the line's bytes without its line end. line: its 1-based number, for the problems.
    """
    decoded = _decode(raw, line)
    if isinstance(decoded, Problem):
        return ParsedLine(line, None, (decoded,))
    problems = (*check_keys(raw.decode("utf-8"), line), *check_example(decoded.value, line))
    if any(problem.severity == "error" for problem in problems):
        return ParsedLine(line, None, problems)
    return ParsedLine(line, _to_example(decoded.value, line), problems)


def parse_lines(source: Path | BinaryIO) -> Iterator[ParsedLine]:
    """Every line of a file with its example or its problems. Blank lines between others are a warning."""
    for line in read_lines(source):
        yield parse_any(line)


def read_examples(source: Path | BinaryIO) -> Iterator[ChatExample]:
    """The examples of a file that has been checked. Raises InvalidData at the first line that is not one."""
    for parsed in parse_lines(source):
        if parsed.example is not None:
            yield parsed.example
        errors = [problem for problem in parsed.problems if problem.severity == "error"]
        if errors:
            shown = [
                {"line": p.line, "path": p.path, "code": p.code, "message": p.message, "remedy": p.remedy}
                for p in errors
            ]
            raise InvalidData(f"Line {parsed.line}: {errors[0].message} {errors[0].remedy}", problems=shown)


def line_too_large(number: int) -> Problem:
    """The problem of a line above the limit."""
    return Problem(
        number,
        "$",
        "line_too_large",
        "error",
        f"The line is longer than {LONGEST_LINE // 2**20} MiB.",
        "Write one example a line, each with its own line end.",
    )


def blank_line(number: int) -> Problem:
    """The problem of a blank line between others."""
    return Problem(number, "$", "blank_line", "warning", "The line is blank.", "Remove it.")


def parse_any(line: Line) -> ParsedLine:
    """What one line is, blank or too long included."""
    if line.raw is None:
        return ParsedLine(line.number, None, (line_too_large(line.number),))
    if line.blank:
        return ParsedLine(line.number, None, (blank_line(line.number),))
    return parse_line(line.raw, line.number)


@dataclass(frozen=True)
class _Decoded:
    value: Any


def _decode(raw: bytes, line: int) -> _Decoded | Problem:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        utf_16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        return Problem(
            line,
            "$",
            "invalid_utf8",
            "error",
            "The file is UTF-16." if utf_16 else f"Byte {error.start + 1} is not UTF-8 (0x{raw[error.start]:02x}).",
            "Save the file as UTF-8.",
        )
    if "\x00" in text:
        message = f"The line holds a NUL byte at column {text.index(chr(0)) + 1}."
        return Problem(line, "$", "nul_character", "error", message, "Export the file again; it was cut or is UTF-16.")
    try:
        return _Decoded(_DECODER.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _json_problem(text, line, str(error))
    except RecursionError:
        return _not_json(line, "it is nested too deeply")


def _json_problem(text: str, line: int, reason: str) -> Problem:
    """What is wrong in `text`, which the strict reader refused: the standard library's reader tells it better."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        if text.startswith("\ufeff"):
            return _not_json(line, "a byte-order mark stands where two files were joined", column=1)
        early = error.pos >= len(text.rstrip())
        return _not_json(
            line, "the line ends too early" if early else error.msg.removesuffix(" starting at"), column=error.pos + 1
        )
    except ValueError as error:
        place = text.find(str(error))
        return _not_json(line, f"{error} is not a JSON value", column=place + 1 if place >= 0 else None)
    except RecursionError:
        return _not_json(line, "it is nested too deeply")
    if not _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        return _not_json(line, reason)
    place = next((found.start() for found in _ESCAPED_SURROGATE.finditer(text) if found[1]), 0)
    message = f"Column {place + 1} holds half a surrogate pair, which is no character."
    return Problem(line, "$", "lone_surrogate", "error", message, "Export the text again without cutting characters.")


def _not_json(line: int, cause: str, *, column: int | None = None) -> Problem:
    where = "" if column is None else f" at column {column}"
    remedy = "Write one complete JSON object on the line, with double quotes and no trailing comma."
    return Problem(line, "$", "invalid_json", "error", f"Not valid JSON{where}: {cause}.", remedy)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _to_example(value: Mapping[str, Any], line: int) -> ChatExample:
    tools = value.get("tools") or [{"type": "function", "function": old} for old in value.get("functions") or ()]
    return ChatExample(
        line=line,
        messages=tuple(_to_message(message) for message in value["messages"]),
        tools=tuple(tools),
        parallel_tool_calls=value.get("parallel_tool_calls"),
        weight=float(value.get("weight") or 1.0),
    )


def _to_message(message: Mapping[str, Any]) -> Message:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    calls = tuple(message.get("tool_calls") or ())
    if not calls and message.get("function_call"):
        calls = ({"type": "function", "function": message["function_call"]},)
    return Message(
        role=message["role"],
        content=message.get("refusal") if content is None else content,
        name=message.get("name"),
        weight=message.get("weight"),
        tool_calls=calls,
        tool_call_id=message.get("tool_call_id"),
    )
