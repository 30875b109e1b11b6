"""How a model writes calls of tools: the texts around names and arguments, writing calls, and reading them back.

Knows text only. The form is a base model's own where its template has one that can be read back; otherwise the one of
NousResearch's Hermes and Qwen 2.5, told to the model in the system message (docs/decisions/0043).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WHITE = " \t\r\n"


@dataclass(frozen=True, kw_only=True)
class CallForm:
    """The text of calls is `opening NAME middle ARGUMENTS (between NAME middle ARGUMENTS)* closing`.

    between: "" where an answer holds one call at most. native: whether the base model's template writes it.
    """

    opening: str
    middle: str
    between: str
    closing: str
    native: bool = True

    @property
    def trigger(self) -> str:
        """The first line of the opening: text that contains it is a call from there on."""
        return self.opening.split("\n")[0]

    @property
    def whole(self) -> bool:
        """Whether only a whole answer is a call, because calls begin like any JSON does."""
        return self.opening.startswith("{")

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """The text of calls whose arguments are objects."""
        written = [
            f"{call['function']['name']}{self.middle}{arguments_text(call['function']['arguments'])}" for call in calls
        ]
        return self.opening + self.between.join(written) + self.closing


GENERIC = CallForm(
    opening='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    closing="}\n</tool_call>",
    native=False,
)

_INSTRUCTIONS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def arguments_text(arguments: object) -> str:
    """Arguments as templates print them with `tojson`."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """What the system message says about tools where the template has no place for them."""
    return _INSTRUCTIONS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def response_text(content: str) -> str:
    """What a tool answered, as part of a user's turn."""
    return f"<tool_response>\n{content}\n</tool_response>"


def find_form(one: str, two: str, after: str, probes: Sequence[tuple[str, Mapping[str, Any]]]) -> CallForm | None:
    """The form behind texts that a template wrote, None where it cannot be told.

    one, two: what follows a prompt whose answer calls the first probe, or both; two is "" where the template refuses
    that. after: what follows an answer of plain text. probes: two names with arguments.
    """
    written = [(name, json.dumps(arguments)) for name, arguments in probes]
    single = _cut(one, written[:1])
    if single is None or not single[0].strip():
        return None
    opening, middle, rest = single
    closing = _before(rest, after)
    if closing is None:
        return None
    form = CallForm(opening=opening.lstrip(), middle=middle, between="", closing=closing)
    double = _cut(two, written) if two else None
    if double is None:
        return form
    if (double[0], double[1], double[3], _before(double[4], after)) != (opening, middle, middle, closing):
        return None
    return CallForm(opening=opening.lstrip(), middle=middle, between=double[2], closing=closing)


def _cut(text: str, written: Sequence[tuple[str, str]]) -> list[str] | None:
    """The pieces of text around names and arguments in their order."""
    pieces = []
    for part in (part for pair in written for part in pair):
        before, found, text = text.partition(part)
        if not found:
            return None
        pieces.append(before)
    return [*pieces, text]


def _before(text: str, after: str) -> str | None:
    """What stands before the end of the turn: the place from which the text goes on as it does after plain text."""
    lengths = [_common(text[start:], after) for start in range(len(text))]
    longest = max(lengths, default=0)
    return text[: lengths.index(longest)] if longest > 1 else None


def _common(one: str, other: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass(frozen=True, kw_only=True)
class Piece:
    """More of an answer: text, or, where `call` is a number, more of that call. name: set on a call's first piece."""

    text: str
    call: int | None = None
    name: str | None = None


class CallReader:
    """Reads an answer while it grows: text in, pieces of text and of calls out.

    White space right before a call belongs to neither. What begins like a call and does not go on like one is text;
    what is cut in the middle of a call is a call whose arguments are cut.
    """

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._held = ""
        self._told = False
        self._read: Callable[[list[Piece]], bool] = self._in_text
        self._scan = _ObjectEnd()
        self.calls = 0

    @property
    def holding(self) -> bool:
        """Whether some of the text has not become a piece."""
        return bool(self._held)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that this text makes certain."""
        self._held += text
        pieces: list[Piece] = []
        while self._read(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back as the possible beginning of a call, once the answer has ended."""
        held, self._held = self._held, ""
        waiting = self._read in (self._in_text, self._in_opening)
        return [Piece(text=held)] if held and waiting and self.calls == 0 else []

    def _in_text(self, pieces: list[Piece]) -> bool:
        trigger = self._form.trigger
        start = self._held.find(trigger)
        if self._form.whole and (self._told or not trigger.startswith(self._held.lstrip(WHITE)[: len(trigger)])):
            certain = self._held
        elif start >= 0:
            certain = self._held[:start].rstrip(WHITE)
            self._read = self._in_opening
        else:
            certain = self._held[: len(self._held) - _possible_beginning(self._held, trigger)].rstrip(WHITE)
        self._tell(pieces, certain)
        self._held = self._held[len(certain) :]
        return self._read == self._in_opening

    def _in_opening(self, pieces: list[Piece]) -> bool:
        begun = self._held.lstrip(WHITE)
        name, found, rest = begun.removeprefix(self._form.opening).partition(self._form.middle)
        if not begun.startswith(self._form.opening[: len(begun)]):
            self._tell(pieces, self._held)
            self._held, self._read = "", self._in_text
        elif begun.startswith(self._form.opening) and found:
            return self._begin(pieces, name, rest)
        return False

    def _in_arguments(self, pieces: list[Piece]) -> bool:
        count = self._scan.feed(self._held)
        ended = count is not None
        text, self._held = (self._held[:count], self._held[count:]) if ended else (self._held, "")
        if text:
            pieces.append(Piece(text=text, call=self.calls - 1))
        if ended:
            self._read = self._between
        return ended

    def _between(self, pieces: list[Piece]) -> bool:
        between = self._form.between
        if not between or not self._held.startswith(between):
            return False
        name, found, rest = self._held.removeprefix(between).partition(self._form.middle)
        return self._begin(pieces, name, rest) if found else False

    def _begin(self, pieces: list[Piece], name: str, rest: str) -> bool:
        pieces.append(Piece(text="", call=self.calls, name=name))
        self.calls += 1
        self._held, self._read, self._scan = rest, self._in_arguments, _ObjectEnd()
        return True

    def _tell(self, pieces: list[Piece], text: str) -> None:
        if text:
            self._told = True
            pieces.append(Piece(text=text))


class _ObjectEnd:
    """Finds where a JSON object ends, in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def feed(self, text: str) -> int | None:
        """How many characters of this text belong to the object when it ends in it."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return None


def _possible_beginning(text: str, trigger: str) -> int:
    """Length of the longest end of text that trigger begins with."""
    for length in range(min(len(trigger) - 1, len(text)), 0, -1):
        if trigger.startswith(text[-length:]):
            return length
    return 0
