"""Requests and tokens a minute, exact within one process: every admission of the last minute is remembered.

Knows windows and amounts; knows nothing of projects or models. Several server processes each count for themselves.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

WINDOW_SECONDS = 60.0


@dataclass
class Entry:
    """One admission. amount: corrected once it is known what was really used."""

    at: float
    amount: int


@dataclass(frozen=True, kw_only=True)
class Full:
    """The limit that stands in the way. used: in the last minute. wait: seconds until there is room for this."""

    key: str
    limit: int
    used: int
    wait: float


@dataclass
class RateMeter:
    """Owns the last minute's admissions, by key. Safe to use from several threads."""

    now: Callable[[], float]
    _entries: dict[str, deque[Entry]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, wanted: Mapping[str, tuple[int, int]]) -> list[Entry] | Full:
        """Admit all of `wanted` (key -> amount and limit a minute), or nothing of it and say what is full.

        An amount above its limit is admitted by an empty window, or it could never be.
        """
        with self._lock:
            now = self.now()
            for key, (amount, limit) in wanted.items():
                found = self._recent(key, now)
                used = sum(entry.amount for entry in found)
                if limit == 0 or (used and used + amount > limit):
                    return Full(key=key, limit=limit, used=used, wait=_wait(found, used + amount - limit, now))
            made = []
            for key, (amount, _) in wanted.items():
                entry = Entry(now, amount)
                self._entries.setdefault(key, deque()).append(entry)
                made.append(entry)
            return made

    def correct(self, entry: Entry, amount: int) -> None:
        """Set an admission to what was really used."""
        with self._lock:
            entry.amount = amount

    def used(self, key: str) -> int:
        """What the last minute holds."""
        with self._lock:
            return sum(entry.amount for entry in self._recent(key, self.now()))

    def _recent(self, key: str, now: float) -> deque[Entry]:
        found = self._entries.get(key, deque())
        while found and found[0].at <= now - WINDOW_SECONDS:
            found.popleft()
        if not found:
            self._entries.pop(key, None)
        return found


def _wait(entries: deque[Entry], too_much: int, now: float) -> float:
    """Seconds until `too_much` has left the window."""
    for entry in entries:
        too_much -= entry.amount
        if too_much <= 0:
            return entry.at + WINDOW_SECONDS - now
    return WINDOW_SECONDS
