"""Who runs in the next step. Decodes and prefill chunks share one flat stream; projects take turns.

Knows counts only: how many tokens a step may hold and whether the cache has room. Runs nothing, holds no tensors.
"""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as TokenIds
from typing import Protocol

from smedje.serving.prefixes import BLOCK, common_length
from smedje.serving.sequence import Chunk, Sequence

# It pays to wait for a beginning that another sequence is computing when it is at least this long.
WORTH_WAITING = 2 * BLOCK


class Room(Protocol):
    """Places for keys and values, counted in tokens per sequence. reuse: whether beginnings are shared at all."""

    reuse: bool

    def reserve(self, sequence_id: int, *, tokens: int, limit: int) -> bool:
        """Make sure of places for `tokens` (never more than `limit`); False when they are not to be had."""

    def reusable(self, adapter: str | None, tokens: TokenIds[int]) -> int:
        """How many of the first tokens are computed already."""

    def take_over(self, sequence_id: int, adapter: str | None, tokens: TokenIds[int]) -> int:
        """Put what is computed already of `tokens` into the sequence's places; how many that was."""

    def free(self, sequence_id: int) -> None:
        """Give all places of a sequence back; an unknown id is no error."""

    def rest(self, sequence_id: int) -> None:
        """Give them back when they are wanted; an unknown id is no error."""


class Scheduler:
    """Waiting and running sequences, both in order of arrival.

    A sequence is admitted when its whole prompt fits; among projects the one with the fewest running goes first. One
    whose beginning is just being computed by another waits for it. When a running sequence cannot grow, the youngest is
    preempted: its places are freed and it waits, first in line, to be computed again. The oldest always fits, so all of
    them end. beside_decodes: prompt tokens of a step in which running completions wait for their next token.
    preemptions: how often a sequence lost its places.
    """

    def __init__(
        self, room: Room, *, max_batch_tokens: int, max_sequences: int, beside_decodes: int | None = None
    ) -> None:
        self._room = room
        self._max_batch_tokens = max_batch_tokens
        self._beside_decodes = max_batch_tokens if beside_decodes is None else beside_decodes
        self._max_sequences = max_sequences
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, waiting or running; what it has computed rests."""
        self._room.rest(sequence.id)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.running or self.waiting)

    def plan(self) -> list[Chunk]:
        """The chunks of the next step: decodes first, then prompts in turn of projects, each as far as tokens reach."""
        before = len(self.running)
        decodes = self._decodes()
        preempted = len(self.running) < before
        begun = [sequence for sequence in self.running if sequence.pending > 1]
        room = self._max_batch_tokens - len(decodes)
        if decodes:
            room = min(room, self._beside_decodes)
        prefills = self._prefills(begun, room)
        room -= sum(chunk.count for chunk in prefills)
        return decodes + prefills + ([] if preempted else self._prefills(self._admit(room), room))

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
        for sequence in _in_turn(sequences):
            if count := min(room, sequence.pending):
                chunks.append(Chunk(sequence, sequence.computed, count))
                room -= count
        return chunks

    def _admit(self, room: int) -> list[Sequence]:
        admitted: list[Sequence] = []
        while len(self.running) < self._max_sequences and room > 0:
            sequence = self._next()
            if sequence is None or self._is_being_computed(sequence):
                break
            # At least one token must run, or there are no logits to choose from.
            begun = sequence.tokens[:-1]
            self._room.reusable(sequence.request.adapter, begun)
            if not self._room.reserve(sequence.id, tokens=len(sequence.tokens), limit=sequence.limit):
                break
            sequence.start_after(self._room.take_over(sequence.id, sequence.request.adapter, begun))
            self.waiting.remove(sequence)
            self.running.append(sequence)
            admitted.append(sequence)
            room -= sequence.pending
        return admitted

    def _next(self) -> Sequence | None:
        """A preempted sequence, or else the first of the project with the fewest running ones."""
        if self.waiting and self.waiting[0].preempted:
            return self.waiting[0]
        running = Counter(sequence.request.project for sequence in self.running)
        return min(self.waiting, key=lambda sequence: running[sequence.request.project], default=None)

    def _is_being_computed(self, sequence: Sequence) -> bool:
        """Whether a running sequence is about to compute much of what this one begins with."""
        tokens = sequence.tokens[:-1]
        near = [
            other for other in self.running if other.pending > 1 and other.request.adapter == sequence.request.adapter
        ]
        if not near or not self._room.reuse:
            return False
        known = self._room.reusable(sequence.request.adapter, tokens)
        ahead = max(common_length(other.tokens, tokens) for other in near)
        return ahead - known >= WORTH_WAITING

    def _grow(self, sequence: Sequence) -> bool:
        """Room for one more token, at the cost of the youngest; False when the youngest is the sequence itself."""
        while not self._room.reserve(sequence.id, tokens=len(sequence.tokens), limit=sequence.limit):
            youngest = self.running.pop()
            self._room.free(youngest.id)
            youngest.preempt()
            self.preemptions += 1
            self.waiting.insert(0, youngest)
            if youngest is sequence:
                return False
        return True


def _in_turn(sequences: Iterable[Sequence]) -> list[Sequence]:
    """The first of each project, then the second of each, and so on; in order of arrival among equals."""
    seen: Counter[str] = Counter()
    ranked = []
    for sequence in sequences:
        ranked.append((seen[sequence.request.project], sequence))
        seen[sequence.request.project] += 1
    return [sequence for _, sequence in sorted(ranked, key=lambda pair: pair[0])]
