"""What is wrong with a data file, as people and programs read it. Knows no rule; the rules are in rules.py."""

from collections import Counter
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

    def kept(self) -> tuple[Problem, ...]:
        """At most a thousand problems in the order of their lines; warnings only where errors leave room."""
        chosen = self._errors + self._warnings[: KEPT_PROBLEMS - len(self._errors)]
        return tuple(sorted(chosen, key=lambda problem: problem.line))


def problem_from(error: InvalidRequest, *, line: int, remedy: str) -> Problem:
    """A refused example as a problem of its line."""
    return Problem(line, f"$.{error.param}" if error.param else "$", error.code, "error", error.message, remedy)
