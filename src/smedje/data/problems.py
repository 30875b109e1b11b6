"""What is wrong with a data file, as people and programs read it. Knows no rule; the rules are in rules.py."""

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from smedje.errors import InvalidRequest

KEPT_PROBLEMS = 1000

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a data file.

    line: 1-based; 0 means the whole file. path: JSON path in the line (`$.messages[2].content`), `$` for all of it.
    code: stable machine word, listed in docs/data-format.md. severity: an error keeps the file from training, a warning
    does not. message: what is wrong, with the value found. remedy: what to do, as a sentence.
    """

    line: int
    path: str
    code: str
    severity: Severity
    message: str
    remedy: str


def error(line: int, path: str, code: str, message: str, remedy: str) -> Problem:
    """A problem that keeps the file from training."""
    return Problem(line, path, code, "error", message, remedy)


def warning(line: int, path: str, code: str, message: str, remedy: str) -> Problem:
    """A problem that does not keep the file from training."""
    return Problem(line, path, code, "warning", message, remedy)


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), "something else")


class ProblemLog:
    """Counts every problem and keeps the first thousand, errors before warnings."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.errors = 0
        self.warnings = 0
        self._errors: list[Problem] = []
        self._warnings: list[Problem] = []

    def add(self, problem: Problem) -> None:
        """Count `problem`, and keep it while there is room."""
        self.counts[problem.code] += 1
        if problem.severity == "error":
            self.errors += 1
            kept = self._errors
        else:
            self.warnings += 1
            kept = self._warnings
        if len(kept) < KEPT_PROBLEMS:
            kept.append(problem)

    def merge(self, counts: Mapping[str, int], problems: Iterable[Problem], *, errors: int, warnings: int) -> None:
        """Add another log's counts and what it kept, in the order of the lines."""
        self.counts.update(counts)
        self.errors += errors
        self.warnings += warnings
        for problem in problems:
            kept = self._errors if problem.severity == "error" else self._warnings
            if len(kept) < KEPT_PROBLEMS:
                kept.append(problem)

    def add_sorted(self, problem: Problem) -> None:
        """Add a warning that may belong before others that were kept."""
        self.counts[problem.code] += 1
        self.warnings += 1
        if len(self._warnings) >= KEPT_PROBLEMS and problem.line >= self._warnings[-1].line:
            return
        insort(self._warnings, problem, key=lambda one: one.line)
        del self._warnings[KEPT_PROBLEMS:]

    def all_kept(self) -> list[Problem]:
        """The first thousand errors and the first thousand warnings, by line."""
        return sorted(self._errors + self._warnings, key=lambda problem: problem.line)

    def kept(self) -> tuple[Problem, ...]:
        """At most a thousand problems in the order of their lines; warnings only where errors leave room."""
        chosen = self._errors + self._warnings[: KEPT_PROBLEMS - len(self._errors)]
        return tuple(sorted(chosen, key=lambda problem: problem.line))


def problem_from(refusal: InvalidRequest, *, line: int, remedy: str) -> Problem:
    """A refused example as a problem of its line."""
    return Problem(line, f"$.{refusal.param}" if refusal.param else "$", refusal.code, "error", refusal.message, remedy)
