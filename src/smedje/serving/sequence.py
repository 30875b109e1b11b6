"""One request on its way: its tokens and how many of them the model has seen. Knows no tensors and no schedule."""

from dataclasses import dataclass
from typing import Protocol

from smedje.domain.conversations import FinishReason
from smedje.serving.engine import GenerationRequest, TokenCounts


class Constraint(Protocol):
    """Which tokens may come next, one completion's own."""

    def allowed(self) -> bytes | None:
        """One bit a token, the lowest bit first; None once the grammar has become too complex to go on."""

    def accept(self, token: int) -> None:
        """Go on after a token that was allowed."""


class Sequence:
    """A prompt that grows into a completion.

    tokens: prompt and completion. computed: tokens whose keys and values are in the cache, always the first ones.
    limit: most tokens that it may ever hold. reused: prompt tokens whose keys and values were taken over when it began.
    preempted: whether it lost its places and waits for new ones; it loses nothing else. constraint: where its text
    stands in the request's grammar.
    """

    def __init__(
        self, sequence_id: int, request: GenerationRequest, *, context: int, constraint: Constraint | None = None
    ) -> None:
        self.id = sequence_id
        self.request = request
        self.constraint = constraint
        self.tokens = list(request.tokens)
        self.computed = 0
        self.reused: int | None = None
        self.preempted = False
        room = context - len(request.tokens)
        self.limit = len(request.tokens) + (room if request.max_tokens is None else min(room, request.max_tokens))

    @property
    def pending(self) -> int:
        """Tokens that the model has still to see before the next one can be chosen; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def completion(self) -> list[int]:
        """Tokens chosen so far."""
        return self.tokens[len(self.request.tokens) :]

    def start_after(self, known: int) -> None:
        """Begin, or begin again, after so many tokens that need not be computed."""
        self.computed = known
        self.preempted = False
        if self.reused is None:
            self.reused = known

    def preempt(self) -> None:
        """Lose all places."""
        self.computed = 0
        self.preempted = True

    def append(self, token: int) -> FinishReason | None:
        """Take the chosen token; says whether, and why, the completion ends with it."""
        self.tokens.append(token)
        if token in self.request.stop_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.tokens) >= self.limit else None

    def usage(self) -> TokenCounts:
        """Counts up to now; the stop token, once appended, is one of the completion's tokens."""
        prompt = len(self.request.tokens)
        completion = len(self.tokens) - prompt
        return TokenCounts(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=self.reused or 0)


@dataclass(frozen=True)
class Chunk:
    """A stretch of one sequence to run in a step: tokens[start : start + count]."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the stretch reaches the end, so that the next token can be chosen."""
        return self.start + self.count == len(self.sequence.tokens)
