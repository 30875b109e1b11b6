"""The three forms of a data file - chat examples, preference pairs, labelled texts - behind one way to read them.

Knows which form a file has; what the rows of each must be is in rules.py, call_rules.py, preference.py and labelled.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from smedje.data.encode import conversation_digest
from smedje.data.labelled import looks_labelled, parse_labelled, validate_labelled
from smedje.data.lines import Line, read_lines
from smedje.data.parse import ChatExample, parse_any
from smedje.data.preference import is_preference_file, parse_pair, validate_preferences
from smedje.data.problems import Problem
from smedje.data.report import Report
from smedje.data.validate import validate_file

Form = Literal["chat", "preference", "classification"]
NAMES: dict[Form, str] = {
    "chat": "chat examples",
    "preference": "preference pairs",
    "classification": "labelled texts",
}
METHODS: dict[str, Form] = {"supervised": "chat", "dpo": "preference", "classification": "classification"}


@dataclass(frozen=True)
class Item:
    """One line of any form. example: what is learnt, None when the line is none; of a text, its label as the answer.

    other: of a pair, the prompt with the worse answer.
    """

    line: int
    example: ChatExample | None
    problems: tuple[Problem, ...] = ()
    other: ChatExample | None = None

    @property
    def digest(self) -> int:
        """64 bits that are equal for equal lines, whatever their order of keys and their other columns."""
        assert self.example is not None, "only an example has a digest"
        # A pair is told apart by both of its answers.
        worse = 0 if self.other is None else conversation_digest(self.other)
        return (conversation_digest(self.example) + 0x9E3779B97F4A7C15 * worse) % 2**64


def form_of(path: Path) -> Form:
    """The form that the first line which is a JSON object speaks for; chat when none does."""
    if is_preference_file(path):
        return "preference"
    for line in read_lines(path):
        if not line.blank and line.raw is not None:
            try:
                return "classification" if looks_labelled(msgspec.json.decode(line.raw)) else "chat"
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return "chat"
    return "chat"


def validate_any(path: Path) -> Report:
    """The report of a file of any form. Never raises for what is in the file."""
    match form_of(path):
        case "preference":
            return validate_preferences(path)
        case "classification":
            return validate_labelled(path)
    return validate_file(path)


def parse_item(line: Line, form: Form) -> Item:
    """What one line is in a file of this form."""
    if form == "preference":
        pair = parse_pair(line)
        if pair.pair is None:
            return Item(line.number, None, pair.problems)
        return Item(line.number, pair.pair.preferred, pair.problems, pair.pair.other)
    if form == "classification":
        labelled = parse_labelled(line)
        return Item(line.number, labelled.example, labelled.problems)
    parsed = parse_any(line)
    return Item(line.number, parsed.example, parsed.problems)


def read_items(path: Path, form: Form | None = None) -> Iterator[Item]:
    """Every line of a file. form: None to look."""
    known = form or form_of(path)
    for line in read_lines(path):
        yield parse_item(line, known)
