"""Grammars that completions must follow: compiled once, then one matcher a completion. Knows llguidance and token ids.

Refuses to know schemas, tools and text: a grammar arrives as text in llguidance's dialect of Lark and either compiles
for this tokenizer or is refused. https://github.com/guidance-ai/llguidance
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer

from smedje.errors import InvalidRequest
from smedje.serving.engine import GRAMMAR_REFUSED

KEPT_GRAMMARS = 128
# What llguidance says begins with a place in the Lark text around a schema, which callers have never seen.
NOISE = "failed to compile JSON schema: "


class Grammars:
    """Owns the tokenizer's tables and the grammars compiled lately. Any thread may call `begin`.

    tokenizer: a tokenizer.json. vocabulary: size of the model's table of logits.
    """

    def __init__(self, tokenizer: Path, *, vocabulary: int) -> None:
        self._path = tokenizer
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tables: dict[frozenset[int], LLTokenizer] = {}
        self._compiled: OrderedDict[tuple[str, frozenset[int]], LLMatcher] = OrderedDict()

    def begin(self, grammar: str, stop_ids: Iterable[int]) -> "GrammarConstraint":
        """A completion's own place at the beginning of the grammar. stop_ids: what ends the text, allowed where the
        grammar may end. Raises InvalidRequest (`grammar_refused`) for a grammar that cannot be enforced."""
        key = grammar, frozenset(stop_ids)
        with self._lock:
            known = self._compiled.get(key)
            if known is not None:
                self._compiled.move_to_end(key)
            tables = self._tables.get(key[1])
            if tables is None:
                tables = self._tables[key[1]] = self._read(key[1])
        if known is None:
            # Outside the lock: a large schema may take a second, and others need not wait for it.
            known = LLMatcher(tables, grammar, log_level=0)
            if known.is_error():
                raise InvalidRequest(_reason(known.get_error()), code=GRAMMAR_REFUSED)
            self._keep(key, known)
        return GrammarConstraint(known.deep_copy())

    def _read(self, stop_ids: frozenset[int]) -> LLTokenizer:
        return LLTokenizer(str(self._path), n_vocab=self._vocabulary, eos_token=sorted(stop_ids))

    def _keep(self, key: tuple[str, frozenset[int]], matcher: LLMatcher) -> None:
        with self._lock:
            self._compiled[key] = matcher
            while len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)


class GrammarConstraint:
    """One completion's place in a grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> bytes | None:
        """See Constraint.allowed."""
        if self._matcher.is_error():
            return None
        bits = self._matcher.compute_bitmask()
        return None if self._matcher.is_error() else bits

    def accept(self, token: int) -> None:
        """See Constraint.accept."""
        self._matcher.consume_token(token)


def _reason(error: str) -> str:
    """The sentence of an llguidance error, without the quoted grammar around it."""
    _, found, rest = error.partition(NOISE)
    said = (rest if found else error).split("\n   1 |")[0].strip()
    return f"The schema cannot be enforced: {said[:400]}"
