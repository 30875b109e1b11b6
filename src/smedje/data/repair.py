"""Repair steps: one file's lines to another's, with an account of every line. Never changes a file in place.

Lines that no step touches keep their exact bytes. Knows lines and steps; knows no storage.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from smedje.data.encode import conversation_digest
from smedje.data.insights import answer, arguments, is_boilerplate, label_counts, question, spoken
from smedje.data.lines import read_lines
from smedje.data.near import NearIndex, normal
from smedje.data.parse import ChatExample, parse_line
from smedje.data.personal import redact
from smedje.errors import InvalidRequest

KEPT_CHANGES = 1000
# Rebalancing leaves the commonest label at most so many times the rarest.
MOST_TIMES = 5
STEPS: Mapping[str, str] = {
    "trim": "remove white space around texts, and messages after the last answer",
    "redact": "replace personal data and secrets by their kind, such as [EMAIL]",
    "add_system_prompt": "give examples without a system prompt the commonest one",
    "drop_invalid": "drop lines that have an error, and blank lines",
    "drop_duplicates": "keep the first of examples that are equal word for word",
    "drop_near_duplicates": "keep the first of examples that are nearly equal",
    "drop_contradictions": "keep the first answer where one question has several",
    "drop_boilerplate": "drop examples whose answer says nothing or refuses",
    "rebalance": f"drop examples of common labels, by the seed, until none is above {MOST_TIMES} times the rarest",
}


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


def check_steps(steps: Sequence[str]) -> tuple[str, ...]:
    """The steps in the order in which they are done. Raises InvalidRequest for none and for unknown ones."""
    for step in steps:
        if step not in STEPS:
            raise InvalidRequest(
                f"There is no repair step {step[:60]!r}. Steps: {', '.join(STEPS)}.",
                code="unknown_repair_step",
                param="steps",
            )
    if not steps:
        raise InvalidRequest(f"Name a repair step: {', '.join(STEPS)}.", code="unknown_repair_step", param="steps")
    return tuple(step for step in STEPS if step in steps)


def repair_file(source: Path, write: Callable[[bytes], object], *, steps: Sequence[str], seed: int = 0) -> Repair:
    """Pass the lines of `source` through `steps` and hand the new file's bytes to `write`.

    The same file, steps and seed always give the same bytes. Raises InvalidRequest for steps that do not exist.
    """
    work = _Work(source, check_steps(steps), seed)
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

    def __init__(self, source: Path, steps: tuple[str, ...], seed: int) -> None:
        self.lines = 0
        self.dropped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.changes: list[Change] = []
        self._source = source
        self._steps = steps
        self._digests: set[int] = set()
        self._near = NearIndex()
        self._answers: dict[bytes, bytes] = {}
        self._system = _commonest_system(source) if "add_system_prompt" in steps else None
        self._spared = _spared_lines(source, steps, seed) if "rebalance" in steps else None

    def rows(self) -> Iterator[_Row]:
        """The lines that stay, as they are to be written."""
        for line in read_lines(self._source):
            self.lines += 1
            raw = self._edited(line.raw, line.number) if line.raw is not None else None
            example = None if raw is None or not raw.strip() else parse_line(raw, line.number).example
            step = self._reason_to_drop(line.number, example)
            if step is not None:
                self._tell(line.number, step, "dropped")
            elif raw is not None and raw.strip():
                yield _Row(line.number, raw, example)

    def _edited(self, raw: bytes, line: int) -> bytes:
        edits = [step for step in ("trim", "redact", "add_system_prompt") if step in self._steps]
        try:
            value = msgspec.json.decode(raw) if edits else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return raw
        messages = value.get("messages") if isinstance(value, dict) else None
        if (
            not isinstance(value, dict)
            or not isinstance(messages, list)
            or not all(isinstance(message, dict) for message in messages)
        ):
            return raw
        for step in edits:
            new = self._step(step, messages)
            if new != messages:
                self._tell(line, step, "changed")
                messages, raw = new, msgspec.json.encode({**value, "messages": new})
        return raw

    def _step(self, step: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if step == "trim":
            return _trimmed(messages)
        if step == "redact":
            return [_redacted(message) for message in messages]
        if self._system is None or not messages or messages[0].get("role") in ("system", "developer"):
            return messages
        return [{"role": "system", "content": self._system}, *messages]

    def _reason_to_drop(self, line: int, example: ChatExample | None) -> str | None:
        if example is None:
            return "drop_invalid" if "drop_invalid" in self._steps else None
        digest = conversation_digest(example)
        if "drop_duplicates" in self._steps and digest in self._digests:
            return "drop_duplicates"
        self._digests.add(digest)
        if "drop_contradictions" in self._steps and not example.messages[-1].tool_calls:
            told = normal(answer(example))
            if self._answers.setdefault(question(example), told) != told:
                return "drop_contradictions"
        if "drop_near_duplicates" in self._steps and self._near.add(line, spoken(example)) is not None:
            return "drop_near_duplicates"
        says_nothing = not example.messages[-1].tool_calls and is_boilerplate(answer(example))
        if "drop_boilerplate" in self._steps and says_nothing:
            return "drop_boilerplate"
        return "rebalance" if self._spared is not None and line not in self._spared else None

    def _tell(self, line: int, step: str, action: str) -> None:
        (self.dropped if action == "dropped" else self.changed)[step] += 1
        if len(self.changes) < KEPT_CHANGES:
            self.changes.append(Change(line, step, action))


def _trimmed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = max((place for place, one in enumerate(messages) if one.get("role") == "assistant"), default=-1)
    kept = messages[: last + 1] or messages
    return [{**one, "content": one["content"].strip()} if isinstance(one.get("content"), str) else one for one in kept]


def _redacted(message: dict[str, Any]) -> dict[str, Any]:
    new = dict(message)
    if isinstance(new.get("content"), str):
        new["content"] = redact(new["content"])
    elif isinstance(new.get("content"), list):
        new["content"] = [
            {**part, "text": redact(part["text"])}
            if isinstance(part, dict) and isinstance(part.get("text"), str)
            else part
            for part in new["content"]
        ]
    calls = new.get("tool_calls")
    if isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls
    ):
        new["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": redact(text)}} if (text := arguments(call)) else call
            for call in calls
        ]
    return new


def _commonest_system(source: Path) -> str | None:
    counts: Counter[str] = Counter()
    for line in read_lines(source):
        example = parse_line(line.raw, line.number).example if line.raw and not line.blank else None
        if example is not None and example.messages[0].role == "system" and example.messages[0].content:
            counts[example.messages[0].content] += 1
    return counts.most_common(1)[0][0] if counts else None


def _spared_lines(source: Path, steps: tuple[str, ...], seed: int) -> set[int] | None:
    """The lines that rebalancing keeps; None when the answers are no labels."""
    before = _Work(source, tuple(step for step in steps if step != "rebalance"), seed)
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
