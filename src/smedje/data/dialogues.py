"""Which rows belong to one dialogue, and splits that keep a dialogue on one side and labels in proportion.

Knows examples and numbers; knows no files.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from hashlib import blake2b

import msgspec

from smedje.data.parse import ChatExample
from smedje.data.split import place_of, split_rows


class DialogueGroups:
    """Takes examples one by one; rows whose conversations begin alike up to an answer get the same number."""

    def __init__(self) -> None:
        self._prefixes: list[list[bytes]] = []
        self._ends: dict[bytes, int] = {}

    def add(self, example: ChatExample) -> None:
        """The next row."""
        row = len(self._prefixes)
        digest = blake2b(msgspec.json.encode(example.tools, order="deterministic"), digest_size=8)
        prefixes = []
        for message in example.messages:
            digest.update(msgspec.json.encode(message.to_dict(), order="deterministic"))
            prefixes.append(digest.digest())
        self._prefixes.append(prefixes)
        # Its end, and its question: another answer to the same question is the same dialogue.
        self._ends.setdefault(prefixes[-1], row)
        if len(prefixes) > 1:
            self._ends.setdefault(prefixes[-2], row)

    def groups(self) -> list[int]:
        """A number for each row: the first row of its dialogue."""
        parent = list(range(len(self._prefixes)))

        def root(row: int) -> int:
            while parent[row] != row:
                parent[row] = parent[parent[row]]
                row = parent[row]
            return row

        for row, prefixes in enumerate(self._prefixes):
            for prefix in prefixes:
                other = self._ends.get(prefix)
                if other is not None:
                    first, second = sorted((root(row), root(other)))
                    parent[second] = first
        return [root(row) for row in range(len(parent))]


def split_shares(
    rows: int,
    shares: Sequence[float],
    *,
    seed: int,
    groups: Sequence[Hashable] | None = None,
    labels: Sequence[Hashable] | None = None,
) -> list[list[int]]:
    """The numbers 0..rows-1 in as many parts as there are shares, each part rising; a pure function of the seed.

    groups: rows with one key stay in one part. labels: each part gets its share of each label as nearly as the groups
    allow; labels too rare to reach every part are shared out together. shares: positive, with sum 1.
    """
    if abs(sum(shares) - 1) > 1e-9 or min(shares) <= 0:
        raise ValueError(f"shares must be positive and add up to 1, found {list(shares)}")
    members: dict[Hashable, list[int]] = {}
    for row in range(rows):
        members.setdefault(row if groups is None else groups[row], []).append(row)
    strata: dict[Hashable, list[list[int]]] = defaultdict(list)
    for group in members.values():
        strata[None if labels is None else labels[group[0]]].append(group)
    parts: list[list[int]] = [[] for _ in shares]
    rare: list[list[int]] = []
    for gathered in strata.values():
        if sum(map(len, gathered)) * min(shares) < 1:
            rare += gathered
        else:
            _deal(gathered, shares, parts, seed=seed)
    _deal(rare, shares, parts, seed=seed)
    return [sorted(part) for part in parts]


def hold_out(
    rows: int,
    *,
    seed: int,
    fraction: float,
    groups: Sequence[Hashable] | None = None,
    labels: Sequence[Hashable] | None = None,
) -> tuple[list[int], list[int]]:
    """Training and validation rows of a job, both rising; a pure function of the seed.

    Without labels as `split_rows`; with labels, validation gets its share of each of them.
    """
    if labels is not None and 0 < fraction < 1:
        training, held = split_shares(rows, (1 - fraction, fraction), seed=seed, groups=groups, labels=labels)
        if held:
            return training, held
    return split_rows(rows, seed=seed, validation_fraction=fraction, groups=groups)


def _deal(gathered: list[list[int]], shares: Sequence[float], parts: list[list[int]], *, seed: int) -> None:
    """Give each group to the part that lacks most of its share of these rows."""
    total = sum(map(len, gathered))
    lacking = [share * total for share in shares]
    for group in sorted(gathered, key=lambda group: place_of(seed, group[0])):
        part = max(range(len(shares)), key=lambda number: (lacking[number], -number))
        parts[part] += group
        lacking[part] -= len(group)
