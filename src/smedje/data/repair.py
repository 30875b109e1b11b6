"""Repair steps: one file's lines to another's, with an account of every line. Never changes a file in place.

Lines that no step touches keep their exact bytes. Knows lines and steps; knows no storage.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from smedje.chat.tokenizer import ChatTokenizer
from smedje.data.counting import longest_of
from smedje.data.edits import edit_line
from smedje.data.forms import Item, form_of, parse_item, read_items
from smedje.data.leaks import Leaks
from smedje.data.lines import Line, read_lines
from smedje.data.near import NearIndex, normal
from smedje.data.parse import ChatExample
from smedje.data.said import answer, is_boilerplate, label_counts, question, spoken
from smedje.errors import InvalidRequest

KEPT_CHANGES = 1000
# Rebalancing leaves the commonest label at most so many times the rarest.
MOST_TIMES = 5
STEPS: Mapping[str, str] = {
    "clean": "remove NUL characters, tokens of chat templates, unknown keys of messages, and weights without effect",
    "merge": "join neighbouring messages of one role",
    "trim": "remove white space around texts, and messages after the last answer",
    "redact": "replace personal data and secrets by their kind, such as [EMAIL]",
    "add_system_prompt": "give examples without a system prompt the commonest one",
    "drop_invalid": "drop lines that have an error, and blank lines",
    "drop_leaks": "drop examples that stand in another file too, word for word or nearly",
    "drop_too_long": "drop examples above a base model's limit of tokens",
    "drop_duplicates": "keep the first of examples that are equal word for word",
    "drop_near_duplicates": "keep the first of examples that are nearly equal",
    "drop_contradictions": "keep the first answer where one question has several",
    "drop_boilerplate": "drop examples whose answer says nothing or refuses",
    "rebalance": f"drop examples of common labels, by the seed, until none is above {MOST_TIMES} times the rarest",
}

EDITS = ("clean", "merge", "trim", "redact", "add_system_prompt")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Change:
    """What happened to one line (from 1) of the source: `dropped` or `changed`, by which step."""

    line: int
    step: str
    action: str


@dataclass(frozen=True)
class Repair:
    """The account of a repair. dropped, changed: lines of each step. changes: the first thousand, by line."""

    lines_read: int
    lines_written: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    changed: Mapping[str, int] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()

    @property
    def summary(self) -> str:
        """One sentence for people."""
        parts = [f"{number} dropped by {step}" for step, number in self.dropped.items()]
        parts += [f"{number} changed by {step}" for step, number in self.changed.items()]
        return f"{self.lines_written} of {self.lines_read} lines written" + (f": {', '.join(parts)}." if parts else ".")


@dataclass(frozen=True)
class _Row:
    line: int
    raw: bytes
    example: ChatExample | None


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What some steps need beside the file. against: the file whose examples `drop_leaks` drops.

    tokenizer, max_tokens: the base model's, for `drop_too_long`.
    """

    against: Path | None = None
    tokenizer: ChatTokenizer | None = None
    max_tokens: int | None = None


def check_steps(steps: Sequence[str], beside: Beside | None = None) -> tuple[str, ...]:
    """The steps in the order in which they are done.

    Raises InvalidRequest for none, for unknown ones, and for a step without what it needs beside the file.
    """
    for step in steps:
        if step not in STEPS:
            raise InvalidRequest(
                f"There is no repair step {step[:60]!r}. Steps: {', '.join(STEPS)}.",
                code="unknown_repair_step",
                param="steps",
            )
    if not steps:
        raise InvalidRequest(f"Name a repair step: {', '.join(STEPS)}.", code="unknown_repair_step", param="steps")
    given = beside or Beside()
    for step, there, what in (
        ("drop_leaks", given.against is not None, "the file to compare with: against"),
        ("drop_too_long", given.tokenizer is not None and given.max_tokens is not None, "a base model: model"),
    ):
        if step in steps and not there:
            raise InvalidRequest(f"{step} needs {what}.", code="missing_field", param=what.rpartition(" ")[2])
    return tuple(step for step in STEPS if step in steps)


def repair_file(
    source: Path,
    write: Callable[[bytes], object],
    *,
    steps: Sequence[str],
    seed: int = 0,
    beside: Beside | None = None,
) -> Repair:
    """Pass the lines of `source`, of any form, through `steps` and hand the new file's bytes to `write`.

    The same file, steps and seed always give the same bytes. Raises what `check_steps` raises.
    """
    work = _Work(source, check_steps(steps, beside), seed, beside or Beside())
    written = 0
    for row in work.rows():
        write(row.raw + b"\n")
        written += 1
    return Repair(
        lines_read=work.lines,
        lines_written=written,
        dropped=dict(work.dropped),
        changed=dict(work.changed),
        changes=tuple(work.changes),
    )


class _Work:
    """One pass over the source, with what earlier lines were."""

    def __init__(self, source: Path, steps: tuple[str, ...], seed: int, beside: Beside) -> None:
        self.lines = 0
        self.dropped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.changes: list[Change] = []
        self._source = source
        self._steps = steps
        self._edits = [step for step in steps if step in EDITS]
        self._form = form_of(source)
        self._beside = beside
        self._digests: set[int] = set()
        self._near = NearIndex()
        self._answers: dict[bytes, bytes] = {}
        self._system = _commonest_system(source) if "add_system_prompt" in steps else None
        self._spared = _spared_lines(source, steps, seed, beside) if "rebalance" in steps else None
        self._leaks = Leaks(beside.against) if "drop_leaks" in steps and beside.against is not None else None

    def rows(self) -> Iterator[_Row]:
        """The lines that stay, as they are to be written."""
        for line in read_lines(self._source):
            self.lines += 1
            raw = self._edited(line.raw, line.number) if line.raw is not None else None
            item = Item(line.number, None)
            if raw is not None and raw.strip():
                item = parse_item(Line(line.number, raw), self._form)
            step = self._reason_to_drop(item)
            if step is not None:
                self._tell(line.number, step, "dropped")
            elif raw is not None and raw.strip():
                yield _Row(line.number, raw, item.example)

    def _edited(self, raw: bytes, line: int) -> bytes:
        if not self._edits:
            return raw
        text = raw.removeprefix(_BOM).replace(b"\x00", b"") if "clean" in self._edits else raw
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return raw
        if not isinstance(value, dict):
            return raw
        if text != raw:
            self._tell(line, "clean", "changed")
        for step in self._edits:
            new = edit_line(value, step, system=self._system)
            if new != value:
                if step != "clean" or text == raw:
                    self._tell(line, step, "changed")
                value, text = new, msgspec.json.encode(new)
        return text

    def _reason_to_drop(self, item: Item) -> str | None:
        example, steps = item.example, self._steps
        if example is None:
            return "drop_invalid" if "drop_invalid" in steps else None
        if self._leaks is not None and self._leaks.of(item) is not None:
            return "drop_leaks"
        if "drop_too_long" in steps and self._too_long(item):
            return "drop_too_long"
        if "drop_duplicates" in steps and item.digest in self._digests:
            return "drop_duplicates"
        self._digests.add(item.digest)
        if "drop_contradictions" in steps and self._contradicts(item, example):
            return "drop_contradictions"
        if "drop_near_duplicates" in steps and self._near.add(item.line, spoken(example)) is not None:
            return "drop_near_duplicates"
        says_nothing = not example.messages[-1].tool_calls and is_boilerplate(answer(example))
        if "drop_boilerplate" in steps and says_nothing and self._form != "classification":
            return "drop_boilerplate"
        return "rebalance" if self._spared is not None and item.line not in self._spared else None

    def _contradicts(self, item: Item, example: ChatExample) -> bool:
        told = normal(answer(example))
        if item.other is not None:
            asked, worse = question(example), normal(answer(item.other))
            self._answers[asked + told + b"\n" + worse] = b""
            return asked + worse + b"\n" + told in self._answers
        if example.messages[-1].tool_calls:
            return False
        return self._answers.setdefault(question(example), told) != told

    def _too_long(self, item: Item) -> bool:
        tokenizer, most = self._beside.tokenizer, self._beside.max_tokens
        assert tokenizer is not None, "checked with the steps"
        assert most is not None, "checked with the steps"
        try:
            return longest_of(item, self._form, tokenizer) > most
        except InvalidRequest:
            # What the template refuses is a problem of its own, and not one of length.
            return False

    def _tell(self, line: int, step: str, action: str) -> None:
        (self.dropped if action == "dropped" else self.changed)[step] += 1
        if len(self.changes) < KEPT_CHANGES:
            self.changes.append(Change(line, step, action))


def _commonest_system(source: Path) -> str | None:
    counts: Counter[str] = Counter()
    for item in read_items(source):
        first = item.example.messages[0] if item.example is not None else None
        if first is not None and first.role == "system" and first.content:
            counts[first.content] += 1
    return counts.most_common(1)[0][0] if counts else None


def _spared_lines(source: Path, steps: tuple[str, ...], seed: int, beside: Beside) -> set[int] | None:
    """The lines that rebalancing keeps; None when the answers are no labels."""
    before = _Work(source, tuple(step for step in steps if step != "rebalance"), seed, beside)
    answers = {row.line: answer(row.example) for row in before.rows() if row.example is not None}
    labels = label_counts(list(answers.values()))
    if labels is None:
        return None
    most = MOST_TIMES * min(labels.values())
    spared: set[int] = set()
    for label in labels:
        lines = [line for line, said in answers.items() if said == label]
        # Python's `random` promises the same numbers from `random()` for one seed, and no more than that.
        draw = random.Random(f"{seed}:{label}")
        spared.update(sorted(lines, key=lambda _: draw.random())[:most])
    return spared
