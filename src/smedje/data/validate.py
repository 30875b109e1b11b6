"""Checks of a whole chat data file: every problem with its line, and the statistics.

Streams: memory grows only by a few numbers an example. Refuses to know the rules of one example (rules.py); what needs
a tokenizer is in counting.py.
"""

from __future__ import annotations  # Python 3.11 cannot subscript array.array

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from smedje.data.halves import find_copies, scan_file, worthwhile_processes
from smedje.data.parse import blank_line
from smedje.data.problems import Problem, ProblemLog
from smedje.data.report import Report, Statistics, distribution
from smedje.data.scan import Segment

FEWEST_EXAMPLES = 10


def validate_file(path: Path, *, fewest_examples: int = FEWEST_EXAMPLES, processes: int | None = None) -> Report:
    """Every problem of a chat JSON Lines file, and its statistics without a tokenizer.

    Never raises for what is in the file. fewest_examples: fewer are an error (`invalid_n_examples`), as at OpenAI.
    processes: read the file with so many, each its part; None for two where the file is large enough.
    """
    size = path.stat().st_size
    segments = scan_file(path, size, processes=processes or worthwhile_processes(size))
    log, starts = ProblemLog(), _starts(segments)
    last = max((start + found.told for start, found in zip(starts, segments, strict=True) if found.told), default=0)
    for start, found in zip(starts, segments, strict=True):
        moved = [replace(problem, line=problem.line + start) for problem in found.problems]
        log.merge(found.counts, moved, errors=found.errors, warnings=found.warnings)
        for number in range(start + found.told + 1, min(start + found.lines, last) + 1):
            log.add(blank_line(number))
    copies = 0
    for line, first in find_copies(segments, starts):
        copies += 1
        log.add_sorted(_copy(line, first))
    examples = sum(found.examples for found in segments)
    if examples == 0:
        log.add(_whole_file("empty_file", "The file has no examples.", "Write one JSON object a line."))
    elif examples < fewest_examples:
        log.add(_too_few(examples, fewest_examples))
    return Report(log.kept(), _statistics(segments, log, size=size, copies=copies))


def _starts(segments: Sequence[Segment]) -> list[int]:
    """How many lines lie before each segment."""
    starts = [0]
    for found in segments[:-1]:
        starts.append(starts[-1] + found.lines)
    return starts


def _statistics(segments: Sequence[Segment], log: ProblemLog, *, size: int, copies: int) -> Statistics:
    valid = sum(found.valid for found in segments)
    roles: Counter[str] = Counter()
    for found in segments:
        roles.update(found.roles)
    return Statistics(
        examples=sum(found.examples for found in segments),
        valid_examples=valid,
        bytes=size,
        messages_by_role=dict(roles),
        messages_per_example=distribution(_joined(found.turns for found in segments)),
        user_characters=distribution(_joined(found.user for found in segments)),
        assistant_characters=distribution(_joined(found.assistant for found in segments)),
        system_prompt_share=sum(found.with_system for found in segments) / valid if valid else 0.0,
        duplicate_examples=copies,
        errors=log.errors,
        warnings=log.warnings,
        problem_codes=dict(log.counts),
    )


def _joined(parts: Iterable[bytes]) -> array[int]:
    joined = array("I")
    for part in parts:
        joined.frombytes(part)
    return joined


def _copy(line: int, first: int) -> Problem:
    message = f"The example is the same as line {first}."
    return Problem(line, "$", "duplicate_example", "warning", message, "Remove the copy.")


def _whole_file(code: str, message: str, remedy: str) -> Problem:
    return Problem(0, "$", code, "error", message, remedy)


def _too_few(found: int, fewest: int) -> Problem:
    examples = "example" if found == 1 else "examples"
    message = f"Training file has {found} {examples}, but must have at least {fewest} examples."
    return _whole_file("invalid_n_examples", message, f"Add {fewest - found} more; 50 to 100 are a good start.")
