"""Labelled texts as data files: {"text" or "messages", "label"} a line. To checks, and to examples that answer a label.

The rules of the text are those of chat files. Encoding them for training is in classification.py.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from smedje.data.classification import MOST_LABELS
from smedje.data.encode import conversation_digest
from smedje.data.lines import Line, read_lines
from smedje.data.parse import ChatExample, blank_line, line_too_large, parse_line
from smedje.data.preference import FEWEST_EXAMPLES, statistics_of
from smedje.data.problems import Problem, ProblemLog
from smedje.data.report import Report

LONGEST_LABEL = 200
_FORM = 'Write {"text": "...", "label": "..."}, or messages in place of text.'


@dataclass(frozen=True)
class LabelledLine:
    """What a line turned out to be. example: the text, answered by its label; None when a problem is an error."""

    line: int
    example: ChatExample | None
    problems: tuple[Problem, ...]


def looks_labelled(value: object) -> bool:
    """Whether a decoded line is a labelled text rather than a chat that happens to have a column `label`."""
    if not isinstance(value, dict) or not isinstance(value.get("label"), str):
        return False
    messages = value.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    answered = isinstance(last, dict) and last.get("role") == "assistant"
    return isinstance(value.get("text"), str) or (messages is not None and not answered)


def parse_labelled(line: Line) -> LabelledLine:
    """One line with all of its problems."""
    if line.raw is None:
        return LabelledLine(line.number, None, (line_too_large(line.number),))
    if line.blank:
        return LabelledLine(line.number, None, (blank_line(line.number),))
    try:
        value = msgspec.json.decode(line.raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The reader of chat files tells what is wrong with the JSON and where.
        return LabelledLine(line.number, None, parse_line(line.raw, line.number).problems)
    if not isinstance(value, dict):
        return LabelledLine(line.number, None, (_error(line, "$", "data_type", "The line is not a JSON object."),))
    problems = list(_check_columns(value, line))
    if problems:
        return LabelledLine(line.number, None, tuple(problems))
    text, label = value.get("text"), value["label"]
    asked = value["messages"] if text is None else [{"role": "user", "content": text}]
    chat = msgspec.json.encode({"messages": [*asked, {"role": "assistant", "content": label}]})
    parsed = parse_line(chat, line.number)
    told = [_moved(problem, len(asked), is_text=text is not None) for problem in parsed.problems]
    return LabelledLine(line.number, parsed.example, tuple(told))


def parse_labelled_file(path: Path) -> Iterator[LabelledLine]:
    """Every line of a file with its example or its problems."""
    for line in read_lines(path):
        yield parse_labelled(line)


def validate_labelled(path: Path) -> Report:
    """Every problem of a file of labelled texts, and its statistics. Never raises for what is in the file."""
    log, examples = ProblemLog(), 0
    valid: list[ChatExample] = []
    first: dict[int, int] = {}
    for parsed in parse_labelled_file(path):
        for problem in parsed.problems:
            log.add(problem)
        examples += not any(problem.code == "blank_line" for problem in parsed.problems)
        if parsed.example is not None:
            valid.append(parsed.example)
            earlier = first.setdefault(conversation_digest(parsed.example), parsed.line)
            if earlier != parsed.line:
                message = f"The example is the same as line {earlier}."
                log.add(Problem(parsed.line, "$", "duplicate_example", "warning", message, "Remove the copy."))
    for problem in _check_whole(examples, valid):
        log.add(problem)
    return Report(log.kept(), statistics_of(valid, log, examples=examples, size=path.stat().st_size))


def _check_whole(examples: int, valid: list[ChatExample]) -> Iterator[Problem]:
    if examples < FEWEST_EXAMPLES:
        code = "invalid_n_examples" if examples else "empty_file"
        message = f"Training file has {examples} example(s), but must have at least {FEWEST_EXAMPLES} examples."
        yield Problem(0, "$", code, "error", message, "Add more labelled texts.")
    labels = Counter(example.messages[-1].content for example in valid)
    if valid and not 2 <= len(labels) <= MOST_LABELS:
        message = f"There are {len(labels)} different labels; 2 to {MOST_LABELS} can be told apart."
        yield Problem(0, "$.label", "invalid_labels", "error", message, "Give the texts at least two labels.")


def _check_columns(value: Mapping[str, Any], line: Line) -> Iterator[Problem]:
    label, text, messages = value.get("label"), value.get("text"), value.get("messages")
    if not isinstance(label, str) or not label.strip() or len(label) > LONGEST_LABEL:
        yield _error(line, "$.label", "missing_label", f"`label` is no text of 1 to {LONGEST_LABEL} characters.")
    if (text is None) == (messages is None):
        found = "neither `text` nor `messages`" if text is None else "both `text` and `messages`"
        yield _error(line, "$", "missing_text", f"The line has {found}.")
    elif text is not None and not (isinstance(text, str) and text.strip()):
        yield _error(line, "$.text", "missing_text", "The `text` is empty or no text.")
    elif messages is not None and not (isinstance(messages, list) and messages):
        yield _error(line, "$.messages", "missing_text", "`messages` is not a list of messages.")


def _moved(problem: Problem, asked: int, *, is_text: bool) -> Problem:
    """The problem at its place in the line as it was written."""
    path = problem.path.replace(f"$.messages[{asked}].content", "$.label").replace(f"$.messages[{asked}]", "$.label")
    return replace(problem, path=path.replace("$.messages[0].content", "$.text") if is_text else path)


def _error(line: Line, path: str, code: str, message: str) -> Problem:
    return Problem(line.number, path, code, "error", message, _FORM)
