"""What a repair changed, line by line: before and after. Knows two files and the account; knows no storage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from smedje.data.lines import read_lines
from smedje.data.repair import Change


@dataclass(frozen=True)
class LineDiff:
    """One line (from 1) of the old file that is not the same in the new one. after: None when it was dropped."""

    line: int
    steps: tuple[str, ...]
    before: str
    after: str | None


def diff_lines(old: Path, new: Path, changes: Sequence[Change]) -> Iterator[LineDiff]:
    """The differences that `changes` tells of, in the order of the lines. changes: as the repair has told them."""
    told: dict[int, list[Change]] = {}
    for change in changes:
        told.setdefault(change.line, []).append(change)
    if not told:
        return
    last, fresh = max(told), read_lines(new)
    for line in read_lines(old):
        if line.number > last:
            return
        here = told.get(line.number, [])
        dropped = any(change.action == "dropped" for change in here)
        # Blank lines are never written, and told only by the step that drops lines with errors.
        kept = None if dropped or line.blank or line.raw is None else next(fresh, None)
        if here:
            after = None if kept is None or kept.raw is None else kept.raw.decode("utf-8", "replace")
            steps = tuple(change.step for change in here)
            yield LineDiff(line.number, steps, (line.raw or b"").decode("utf-8", "replace"), after)
