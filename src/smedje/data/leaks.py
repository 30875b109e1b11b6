"""Leaks: lines of one file that stand in another one too, word for word or nearly."""

from pathlib import Path
from typing import Literal

from smedje.data.forms import Item, read_items
from smedje.data.insights import LOOKED_AT, SHOWN_LINES, Finding, finding, shortened
from smedje.data.near import NearIndex
from smedje.data.said import spoken


def find_leaks(
    training: Path, validation: Path, *, limit: int = LOOKED_AT, shown: int = SHOWN_LINES
) -> tuple[Finding, ...]:
    """Validation lines that stand in the training file too, word for word or nearly. Lines are those of validation.

    limit: near copies are looked for among so many examples of each. shown: the most lines that a finding names.
    """
    leaks = Leaks(training, limit=limit)
    exact, near = [], []
    for item in read_items(validation):
        match leaks.of(item):
            case "exact":
                exact.append(item.line)
            case "near":
                near.append(item.line)
    remedy = "Remove them from one of the files: they make the validation loss look better than it is."
    told = (
        finding(
            "leaked_example",
            "{} of the validation file stands|stand in the training file",
            exact,
            remedy,
            repair="drop_leaks",
            weight=9,
        ),
        finding(
            "nearly_leaked_example",
            "{} of the validation file nearly stands|stand in the training file",
            near,
            remedy,
            repair="drop_leaks",
            weight=7,
        ),
    )
    return shortened((found for found in told if found is not None), shown)


class Leaks:
    """Which lines of another file stand in this one: word for word against all of it, nearly against the first
    `limit` examples, for as many lines."""

    def __init__(self, path: Path, *, limit: int = LOOKED_AT) -> None:
        self._index, self._digests = NearIndex(), set()
        self._limit, self._asked = limit, 0
        for number, item in enumerate(one for one in read_items(path) if one.example is not None):
            self._digests.add(item.digest)
            if number < limit and item.example is not None:
                self._index.add(item.line, spoken(item.example))

    def of(self, item: Item) -> Literal["exact", "near"] | None:
        """Whether a line of the other file is in this one."""
        if item.example is None:
            return None
        self._asked += 1
        if item.digest in self._digests:
            return "exact"
        near = self._asked <= self._limit and self._index.find(spoken(item.example)) is not None
        return "near" if near else None
