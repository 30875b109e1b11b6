"""A file in parts - training, validation, test - by dialogue and label; and what two such parts are like together.

Knows files of any form; knows no storage.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smedje.data.dialogues import DialogueGroups, split_shares
from smedje.data.forms import form_of, read_items
from smedje.data.insights import Finding, Insights, by_weight
from smedje.data.labels import answer_labels
from smedje.data.leaks import find_leaks
from smedje.data.lines import read_lines
from smedje.data.preference import prompt_digest
from smedje.data.said import LONGEST_LABEL, answer
from smedje.errors import InvalidData, InvalidRequest

NAMES = ("train", "validation", "test")
# A label or language whose share differs by more than this between two files is told.
SHIFTED = 0.1


@dataclass(frozen=True)
class Parts:
    """Which lines (from 1) make which part. by_label: whether each part has its share of each label."""

    lines: Mapping[str, tuple[int, ...]]
    by_label: bool


@dataclass(frozen=True)
class Sides:
    """A training file and its validation file beside each other. findings: heaviest first; lines are validation's.

    labels, languages: name to its shares of training and of validation. problems of either file are not told here.
    """

    findings: tuple[Finding, ...] = ()
    labels: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    languages: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def check_shares(text: str) -> tuple[int, ...]:
    """80/20 or 80/10/10 as numbers. Raises InvalidRequest for anything that is not two or three shares of 100."""
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InvalidRequest(
            f"shares is {text[:40]!r}; write percentages such as 80/20 or 80/10/10.",
            code="invalid_value",
            param="shares",
        )
    if sum(map(int, parts)) != 100:
        raise InvalidRequest(
            f"shares {text[:40]} adds up to {sum(map(int, parts))}, not to 100.", code="invalid_value", param="shares"
        )
    return tuple(map(int, parts))


def split_file(path: Path, shares: Sequence[int], *, seed: int) -> Parts:
    """Which lines go where. Lines of one dialogue stay together. Raises InvalidData at the first line with an error."""
    form, groups = form_of(path), DialogueGroups()
    lines: list[int] = []
    prompts: list[int] = []
    for item in read_items(path, form):
        errors = [problem for problem in item.problems if problem.severity == "error"]
        if errors:
            raise InvalidData(f"Line {item.line}: {errors[0].message} {errors[0].remedy}", code=errors[0].code)
        if item.example is not None:
            groups.add(item.example)
            prompts.append(prompt_digest(item.example))
            lines.append(item.line)
    labels = answer_labels(path)
    rows = split_shares(
        len(lines),
        [share / 100 for share in shares],
        seed=seed,
        groups=groups.groups() if form == "chat" else prompts,
        labels=None if labels is None else [labels[line] for line in lines],
    )
    named = zip(NAMES, rows, strict=False)
    return Parts({name: tuple(lines[row] for row in part) for name, part in named}, labels is not None)


def write_parts(path: Path, parts: Parts, writers: Mapping[str, Callable[[bytes], object]]) -> None:
    """Hand each part's lines, byte for byte, to the writer of its name."""
    owner = {line: name for name, lines in parts.lines.items() for line in lines}
    for line in read_lines(path):
        if line.number in owner and line.raw is not None:
            writers[owner[line.number]](line.raw + b"\n")


def compare_sides(training: Path, validation: Path, seen: tuple[Insights, Insights]) -> Sides:
    """What the two files are like beside each other. seen: what each is like by itself."""
    guessed = [{name: count for name, count in one.languages.items() if name != "?"} for one in seen]
    languages = _shares(guessed[0], guessed[1])
    labels = _shares(_labels(training), _labels(validation)) if _labels(training, only_labels=True) else {}
    findings = [*find_leaks(training, validation)]
    new = [name for name, (first, second) in labels.items() if first == 0 and second > 0]
    if new and any(first for first, _ in labels.values()):
        text = f"{len(new)} labels of the validation file never stand in the training file: {_named(new)}."
        findings.append(Finding("unseen_label", text, "Split the data anew, by label.", len(new), (), "resplit", 8))
    for what, code, shares in (("label", "shifted_labels", labels), ("language", "shifted_languages", languages)):
        moved = [name for name, (first, second) in shares.items() if abs(first - second) > SHIFTED and name not in new]
        if moved:
            text = f"The share of the {what} {_named(moved)} differs by more than {SHIFTED:.0%} between the files."
            findings.append(Finding(code, text, "Split the data anew, by label.", len(moved), (), "resplit", 3))
    return Sides(by_weight(findings), labels, languages)


def _labels(path: Path, *, only_labels: bool = False) -> Mapping[str, int]:
    if only_labels and form_of(path) != "classification" and answer_labels(path) is None:
        return {}
    said = Counter(answer(item.example) for item in read_items(path) if item.example is not None)
    return {text[:LONGEST_LABEL]: number for text, number in said.items()}


def _shares(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    if not first or not second:
        return {}
    totals = sum(first.values()), sum(second.values())
    names = sorted({*first, *second}, key=lambda name: (-first.get(name, 0), name))
    return {name: (first.get(name, 0) / totals[0], second.get(name, 0) / totals[1]) for name in names}


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")
