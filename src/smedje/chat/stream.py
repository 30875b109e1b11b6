"""Text of an answer while it is generated: ids in, text out, never half a character and never part of a stop string.

Knows ids, text and the tokenizer; knows no network, no messages and no finish reasons.
"""

import re
from collections.abc import Iterable, Sequence

from smedje.chat.tokenizer import ChatTokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_INCOMPLETE = "\ufffd"


class IncrementalDecoder:
    """Decodes an answer piece by piece; the pieces joined are exactly `tokenizer.decode` of all ids.

    A piece is held back while it may change: while its bytes are not a whole character, and, for tokenizers that fall
    back to single bytes, until a run of byte tokens ends, because one bad byte spoils the whole run.
    Only the last pieces are decoded again, as in Hugging Face's text-generation-inference (`decode_token`), because
    some decoders drop the space before the first token that they see.
    """

    def __init__(self, tokenizer: ChatTokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids if skip_special else frozenset[int]()
        self._ids: list[int] = []
        self._context = 0
        self._told = 0

    def feed(self, ids: Iterable[int]) -> str:
        """The text that `ids` make certain, often one word, sometimes nothing."""
        self._ids += [number for number in ids if number not in self._hidden]
        return self._tell(final=False)

    def finish(self) -> str:
        """What was still held back; afterwards nothing may be fed."""
        return self._tell(final=True)

    def _tell(self, *, final: bool) -> str:
        if self._told == len(self._ids) or (not final and self._ends_in_byte()):
            return ""
        before = self._decode(self._ids[self._context : self._told])
        now = self._decode(self._ids[self._context :])
        if not final and now.endswith(_INCOMPLETE):
            return ""
        self._context, self._told = self._told, len(self._ids)
        return now[len(before) :]

    def _ends_in_byte(self) -> bool:
        return _BYTE_TOKEN.fullmatch(self._tokenizer.tokenizer.id_to_token(self._ids[-1]) or "") is not None

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=False) if ids else ""


class StopStrings:
    """Lets text through up to the first stop string, and holds back what may be the beginning of one.

    The first is the one that is complete first, so the result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that is certain to stand before any stop string; "" once `stopped` is true."""
        if self.stopped:
            return ""
        self._held += text
        found = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            _, start = min(found)
            before, self._held = self._held[:start], ""
            return before
        keep = self._beginning()
        let_through, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return let_through

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _beginning(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
