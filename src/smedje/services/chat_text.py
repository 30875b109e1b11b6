"""Tokens of one answer to text: decoding, stop strings, and log probabilities that keep step with the text let through.

Knows one answer; knows nothing of engines, requests or wire shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from smedje.chat.calls import CallForm, CallReader, Piece
from smedje.chat.stream import IncrementalDecoder, StopStrings
from smedje.chat.tokenizer import ChatTokenizer
from smedje.domain.ids import CALL, new_id
from smedje.serving.engine import TokenLogprob

# JSON has no infinity; OpenAI's documents name this for a token that cannot come.
LOWEST_LOGPROB = -9999.0


@dataclass(frozen=True, kw_only=True)
class CallDelta:
    """More of a call of a tool. name: set on the call's first piece. id: the call's own, on every piece."""

    index: int
    id: str
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, kw_only=True)
class TokenText:
    """A token as text, its natural-log probability, and the likeliest tokens at its place.

    Bytes of a token that is a piece of a character stand in text as Python's `surrogateescape` writes them.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class AnswerText:
    """Owns the text of one answer while it grows."""

    def __init__(self, tokenizer: ChatTokenizer, *, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer)
        self._stops = StopStrings(stop)
        self._fed = 0
        self._decoded = 0
        self._released = 0
        self._waiting: list[tuple[int, TokenText | None]] = []
        self._anchor = tokenizer.encode("a")[-1:]

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stops.stopped

    @property
    def begun(self) -> int:
        """Tokens fed whose text has been let through, at least its first character."""
        return self._fed - len(self._waiting)

    def feed(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob] | None) -> tuple[str, tuple[TokenText, ...]]:
        """The text that these tokens make certain, and the log probabilities of the tokens that it begins."""
        text = ""
        for place, token in enumerate(tokens):
            self._fed += 1
            self._waiting.append((self._decoded, None if logprobs is None else self._told(logprobs[place])))
            text += self._let_through(self._decoder.feed([token]))
            if self.stopped:
                break
        return text, self._begun()

    def finish(self) -> tuple[str, tuple[TokenText, ...]]:
        """What was held back, once generation has ended without a stop string."""
        text = self._let_through(self._decoder.finish())
        if self.stopped:
            return text, self._begun()
        text += self._stops.finish()
        rest = tuple(told for _, told in self._waiting if told is not None)
        self._waiting.clear()
        return text, rest

    def _let_through(self, piece: str) -> str:
        self._decoded += len(piece)
        text = self._stops.feed(piece)
        self._released += len(text)
        return text

    def _begun(self) -> tuple[TokenText, ...]:
        """Waiting tokens whose first character has been let through wait no more; their log probabilities."""
        count = sum(start < self._released for start, _ in self._waiting)
        begun, self._waiting = self._waiting[:count], self._waiting[count:]
        return tuple(told for _, told in begun if told is not None)

    def _told(self, found: TokenLogprob) -> TokenText:
        return TokenText(
            text=self._text_of(found.token),
            logprob=max(found.logprob, LOWEST_LOGPROB),
            top=tuple((self._text_of(token), max(logprob, LOWEST_LOGPROB)) for token, logprob in found.top),
        )

    def _text_of(self, token: int) -> str:
        # After another token, because some decoders drop the space before the first one.
        before = self._tokenizer.decode(self._anchor, skip_special=False)
        text = self._tokenizer.decode([*self._anchor, token], skip_special=False)[len(before) :]
        raw = self._tokenizer.raw_bytes(token) if "\ufffd" in text else None
        return text if raw is None else raw.decode("utf-8", "surrogateescape")


class AnswerCalls:
    """Tells the calls of one answer from its text while it grows. form: None where nothing may be called."""

    def __init__(self, form: CallForm | None) -> None:
        self._reader = None if form is None else CallReader(form)
        self._ids: list[str] = []

    @property
    def any(self) -> bool:
        """Whether a call has begun."""
        return bool(self._ids)

    @property
    def holding(self) -> bool:
        """Whether text is held back, as what may become a call or as what only divides and ends calls."""
        return self._reader is not None and self._reader.holding

    def feed(self, text: str, *, last: bool) -> tuple[str, tuple[CallDelta, ...]]:
        """The text and the calls that this piece of the answer makes certain. last: nothing more will come."""
        if self._reader is None:
            return text, ()
        pieces = self._reader.feed(text) + (self._reader.finish() if last else [])
        told = "".join(piece.text for piece in pieces if piece.call is None)
        return told, tuple(self._delta(piece, piece.call) for piece in pieces if piece.call is not None)

    def _delta(self, piece: Piece, index: int) -> CallDelta:
        if piece.name is not None:
            self._ids.append(new_id(CALL))
        return CallDelta(index=index, id=self._ids[index], name=piece.name, arguments=piece.text)


def joined(calls: Sequence[CallDelta], more: Sequence[CallDelta]) -> tuple[CallDelta, ...]:
    """Whole calls so far, and what came of them since."""
    found = {call.index: call for call in calls}
    for piece in more:
        known = found.get(piece.index)
        if known is not None:
            piece = replace(known, arguments=known.arguments + piece.arguments)
        found[piece.index] = piece
    return tuple(found[index] for index in sorted(found))
