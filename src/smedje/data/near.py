"""Near copies: MinHash signatures of character 5-grams, looked up in bands. Knows texts and numbers only.

Source: Broder, "On the resemblance and containment of documents" (1997); Indyk and Motwani (1998) for the bands.
64 hashes in 16 bands of 4 find a pair of similarity 0.8 with probability 0.9998. What the bands propose is then
compared exactly, so that chance adds no pair.
"""

from __future__ import annotations  # numpy is loaded where it is used

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIMILAR = 0.8
GRAM = 5
HASHES = 64
BANDS = 16
# Compared with at most so many earlier texts of a band: thousands of copies of one text stay cheap.
TRIES = 8
_SEED = 20_190_917


@dataclass(frozen=True)
class Match:
    """An earlier text: the key it was added with, and the Jaccard similarity of the 5-grams, at most 1."""

    key: int
    similarity: float


class NearIndex:
    """Texts under numbers, and which of them nearly equals a given text. Grows by the texts' bytes."""

    def __init__(self, *, similar: float = SIMILAR) -> None:
        import numpy as np

        self._similar = similar
        draw = np.random.default_rng(_SEED)
        self._factors = draw.integers(0, 2**63, HASHES, dtype=np.uint64) | np.uint64(1)
        self._bands: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]
        self._texts: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, key: int, text: str) -> Match | None:
        """Keep `text` under `key` unless it nearly equals an earlier text, which is then returned."""
        raw = normal(text)
        bands = self._signature(raw)
        found = self._find(raw, bands)
        if found is None and bands:
            self._texts[key] = raw
            for table, band in zip(self._bands, bands, strict=True):
                table.setdefault(band, []).append(key)
        return found

    def find(self, text: str) -> Match | None:
        """The nearest text among the candidates, None when none is similar enough."""
        raw = normal(text)
        return self._find(raw, self._signature(raw))

    def _find(self, raw: bytes, bands: list[bytes]) -> Match | None:
        votes: dict[int, int] = {}
        for table, band in zip(self._bands, bands, strict=False):
            for key in table.get(band, ())[:TRIES]:
                votes[key] = votes.get(key, 0) + 1
        best: Match | None = None
        for key in sorted(votes, key=lambda key: (-votes[key], key))[:TRIES]:
            similarity = jaccard(raw, self._texts[key])
            if similarity >= self._similar and (best is None or similarity > best.similarity):
                best = Match(key, similarity)
        return best

    def _signature(self, raw: bytes) -> list[bytes]:
        import numpy as np

        grams = _grams(raw)
        if len(grams) == 0:
            return []
        mixed = grams[None, :] * self._factors[:, None]
        lowest = (mixed ^ (mixed >> np.uint64(29))).min(axis=1)
        rows = HASHES // BANDS
        return [lowest[band * rows : (band + 1) * rows].tobytes() for band in range(BANDS)]


def normal(text: str) -> bytes:
    """The text as it is compared: lower case, white space as single spaces."""
    return " ".join(text.lower().split()).encode("utf-8", "replace")


def jaccard(first: bytes, second: bytes) -> float:
    """Shared 5-grams over all 5-grams of two normal texts, 0 to 1."""
    import numpy as np

    if first == second:
        return 1.0
    one, other = _grams(first), _grams(second)
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def _grams(raw: bytes) -> NDArray[np.uint64]:
    """The different 5-grams of bytes as rising numbers."""
    import numpy as np

    if len(raw) < GRAM:
        return np.empty(0, dtype=np.uint64)
    codes = np.frombuffer(raw, dtype=np.uint8).astype(np.uint64)
    grams = np.zeros(len(codes) - GRAM + 1, dtype=np.uint64)
    for place in range(GRAM):
        grams = (grams << np.uint64(8)) | codes[place : len(codes) - GRAM + 1 + place]
    return np.unique(grams)
