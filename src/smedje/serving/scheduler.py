"""Who runs in the next step. First come, first served; decodes and prefill chunks share one flat stream.

Knows counts only: how many tokens a step may hold and whether the cache has room. Runs nothing, holds no tensors.
"""

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from smedje.serving.sequence import Chunk, Sequence


class Room(Protocol):
    """Places for keys and values, counted in tokens per sequence."""

    def reserve(self, sequence_id: int, *, tokens: int, limit: int) -> bool:
        """Make sure of places for `tokens` (never more than `limit`); False when they are not to be had."""

    def free(self, sequence_id: int) -> None:
        """Give all places of a sequence back; an unknown id is no error."""


class Scheduler:
    """Waiting and running sequences, both in order of arrival.

    A sequence is admitted when its whole prompt fits. When a running one cannot grow, the youngest is preempted: its
    places are freed and it waits, first in line, to be computed again. The oldest always fits, so all of them end.
    """

    def __init__(self, room: Room, *, max_batch_tokens: int, max_sequences: int) -> None:
        self._room = room
        self._max_batch_tokens = max_batch_tokens
        self._max_sequences = max_sequences
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, waiting or running, and free its places."""
        self._room.free(sequence.id)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.running or self.waiting)

    def plan(self) -> list[Chunk]:
        """The chunks of the next step: decodes first, then prompts in order of arrival, each as far as tokens reach."""
        before = len(self.running)
        decodes = self._decodes()
        preempted = len(self.running) < before
        chunks = decodes + self._prefills(self.running, self._max_batch_tokens - len(decodes))
        room = self._max_batch_tokens - sum(chunk.count for chunk in chunks)
        return chunks if preempted else chunks + self._prefills(self._admit(room), room)

    def _decodes(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        for sequence in list(self.running):
            if len(chunks) == self._max_batch_tokens:
                break
            if sequence in self.running and sequence.pending == 1 and self._grow(sequence):
                chunks.append(Chunk(sequence, sequence.computed, 1))
        return chunks

    def _prefills(self, sequences: Iterable[Sequence], room: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        for sequence in sequences:
            count = min(room, sequence.pending)
            if sequence.pending > 1 and count:
                chunks.append(Chunk(sequence, sequence.computed, count))
                room -= count
        return chunks

    def _admit(self, room: int) -> list[Sequence]:
        admitted: list[Sequence] = []
        while self.waiting and len(self.running) < self._max_sequences and room > 0:
            sequence = self.waiting[0]
            if not self._room.reserve(sequence.id, tokens=len(sequence.tokens), limit=sequence.limit):
                break
            self.running.append(self.waiting.popleft())
            admitted.append(sequence)
            room -= sequence.pending
        return admitted

    def _grow(self, sequence: Sequence) -> bool:
        """Room for one more token, at the cost of the youngest; False when the youngest is the sequence itself."""
        while not self._room.reserve(sequence.id, tokens=len(sequence.tokens), limit=sequence.limit):
            youngest = self.running.pop()
            self._room.free(youngest.id)
            youngest.computed = 0
            self.waiting.appendleft(youngest)
            if youngest is sequence:
                return False
        return True
