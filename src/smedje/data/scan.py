"""One pass over a byte range of a chat file: problems, counts and digests, fast.

A line of plain messages is read by a typed decoder and counted; every other line goes through the rules of `parse`, so
that both ways give the same result. Knows one range; refuses to know the whole file, which `validate` puts together.
"""

import sys
from array import array
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec

from smedje.data.encode import conversation_digest, digest_head
from smedje.data.lines import LONGEST_LINE
from smedje.data.parse import ChatExample, ParsedLine, blank_line, line_too_large, parse_line
from smedje.data.problems import Problem, ProblemLog
from smedje.data.rules import CONTROL_TOKEN

_BOM = b"\xef\xbb\xbf"
_OTHER_COLUMNS = frozenset({"tools", "functions", "parallel_tool_calls", "weight"})
# Conversations of one shape (roles and weights) are told apart by their texts alone; more shapes are not remembered.
_SHAPES = 4096
_LONGEST_SHAPE = 64

ShapeKey = tuple[tuple[str, int | None], ...]


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    content: Annotated[str, msgspec.Meta(min_length=1)]
    role: Literal["system", "developer", "user", "assistant"]
    weight: Literal[0, 1] | None = None


class _PlainLine(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: list[_Plain]


_PLAIN = msgspec.json.Decoder(_PlainLine)
_ANY = msgspec.json.Decoder()


class _Shape:
    """A conversation's roles and weights, and how many lines had them. head: what their digests begin with."""

    __slots__ = ("assistant", "head", "key", "times", "user", "with_system")

    def __init__(self, key: ShapeKey) -> None:
        self.key = key
        self.times = 0
        self.with_system = key[0][0] in ("system", "developer")
        self.user = tuple(place for place, (role, _) in enumerate(key) if role == "user")
        self.assistant = tuple(place for place, (role, _) in enumerate(key) if role == "assistant")
        self.head = digest_head([{"role": role} | ({} if w is None else {"weight": w}) for role, w in key], ())


class Segment(msgspec.Struct, kw_only=True):
    """What was found in a byte range. Lines count from 1 at the range's start.

    lines: line ends passed. told: the last line that is not blank, 0 for none; blank lines after it are not told.
    counts: problems of each code; problems: the first thousand errors and warnings. turns, user, assistant: arrays "I"
    of messages an example and of characters a message, as bytes. digests: 8 bytes an example, and its line in
    digest_lines ("I").
    """

    lines: int
    told: int
    examples: int
    valid: int
    with_system: int
    roles: dict[str, int]
    counts: dict[str, int]
    errors: int
    warnings: int
    problems: list[Problem]
    turns: bytes
    user: bytes
    assistant: bytes
    digests: bytes
    digest_lines: bytes


class Scanner:
    """Takes the lines of one range in order; `segment` tells what they were."""

    def __init__(self) -> None:
        self.number = 0
        self._told = 0
        self._log = ProblemLog()
        self._examples = 0
        self._valid = 0
        self._with_system = 0
        self._roles: Counter[str] = Counter()
        self._shapes: dict[ShapeKey, _Shape] = {}
        self._turns = array("I")
        self._user = array("I")
        self._assistant = array("I")
        self._digests = bytearray()
        self._digest_lines = array("I")

    def take(self, raw: bytes) -> None:
        """The next line, with or without its line end."""
        self.number += 1
        plain = _plain_messages(raw)
        if plain is not None and self._count_plain(plain):
            return
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        if not raw.strip():
            return
        parsed = parse_line(raw, self.number)
        self._count(parsed)
        if plain is not None and not parsed.problems and len(self._shapes) < _SHAPES and len(plain) <= _LONGEST_SHAPE:
            key = _shape_key(plain)
            self._shapes.setdefault(key, _Shape(key))

    def take_too_large(self) -> None:
        """The next line, too long to be looked at."""
        self.number += 1
        self._count(ParsedLine(self.number, None, (line_too_large(self.number),)))

    def segment(self) -> Segment:
        """Everything that was found so far."""
        roles = self._roles.copy()
        plain = sum(shape.times for shape in self._shapes.values())
        for shape in self._shapes.values():
            for role, _ in shape.key:
                roles[role] += shape.times
        return Segment(
            lines=self.number,
            told=self._told,
            examples=self._examples + plain,
            valid=self._valid + plain,
            with_system=self._with_system + sum(one.times for one in self._shapes.values() if one.with_system),
            roles={role: number for role, number in roles.items() if number},
            counts=dict(self._log.counts),
            errors=self._log.errors,
            warnings=self._log.warnings,
            problems=self._log.all_kept(),
            turns=self._turns.tobytes(),
            user=self._user.tobytes(),
            assistant=self._assistant.tobytes(),
            digests=bytes(self._digests),
            digest_lines=self._digest_lines.tobytes(),
        )

    def _pass_blanks(self) -> None:
        for number in range(self._told + 1, self.number):
            self._log.add(blank_line(number))
        self._told = self.number

    def _count_plain(self, messages: list[_Plain]) -> bool:
        shape = self._shapes.get(_shape_key(messages))
        if shape is None:
            return False
        if self._told != self.number - 1:
            self._pass_blanks()
        self._told = self.number
        shape.times += 1
        texts = [message.content for message in messages]
        self._turns.append(len(texts))
        for place in shape.user:
            self._user.append(len(texts[place]))
        for place in shape.assistant:
            self._assistant.append(len(texts[place]))
        self._digests += blake2b(shape.head + "\0".join(texts).encode(), digest_size=8).digest()
        self._digest_lines.append(self.number)
        return True

    def _count(self, parsed: ParsedLine) -> None:
        self._pass_blanks()
        for problem in parsed.problems:
            self._log.add(problem)
        self._examples += 1
        if parsed.example is not None:
            self._count_example(parsed.example)

    def _count_example(self, example: ChatExample) -> None:
        self._valid += 1
        self._turns.append(len(example.messages))
        self._with_system += example.messages[0].role in ("system", "developer")
        for message in example.messages:
            self._roles[message.role] += 1
            if message.role == "user":
                self._user.append(len(message.content or ""))
            elif message.role == "assistant":
                self._assistant.append(len(message.content or ""))
        self._digests += conversation_digest(example).to_bytes(8, "little")
        self._digest_lines.append(self.number)


def scan_range(path: Path, start: int, end: int) -> Segment:
    """Scan the lines of `path` from byte `start` to byte `end`; both stand at the begin of a line or the file's end."""
    scanner = Scanner()
    with path.open("rb", buffering=1 << 20) as stream:
        stream.seek(start)
        place = start
        while place < end and (raw := stream.readline(LONGEST_LINE + 2)):
            place += len(raw)
            if not raw.endswith(b"\n") and len(raw) >= LONGEST_LINE:
                place += _skip_line(stream)
                scanner.take_too_large()
            else:
                scanner.take(raw.removeprefix(_BOM) if start == 0 and scanner.number == 0 else raw)
    return scanner.segment()


def next_line(path: Path, place: int) -> int:
    """The first begin of a line at or after byte `place`, or the file's size."""
    if place == 0:
        return 0
    with path.open("rb") as stream:
        stream.seek(place - 1)
        return place - 1 + _skip_line(stream)


def _skip_line(stream: BinaryIO) -> int:
    passed = 0
    while rest := stream.readline(LONGEST_LINE):
        passed += len(rest)
        if rest.endswith(b"\n"):
            break
    return passed


def _shape_key(messages: list[_Plain]) -> ShapeKey:
    return tuple([(message.role, message.weight) for message in messages])


def _plain_messages(raw: bytes) -> list[_Plain] | None:
    """The messages of a line that only has system, user and assistant texts and no key twice, else None."""
    escaped = b"\\" in raw and b"\\u00" in raw
    try:
        messages = _PLAIN.decode(raw).messages
        once = _no_name_twice(raw, messages) if escaped else _no_key_twice(raw, messages)
    except msgspec.ValidationError:
        found = _beside_columns(raw)
        if found is None:
            return None
        messages, once = found, _no_name_twice(raw, found)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not once:
        return None
    for message in messages:
        if message.content.isspace():
            return None
    if escaped and b"\\u0000" in raw:
        return None
    # A line has one "]" of its own: only a text can hold more.
    marked = escaped or b"<" in raw or (raw.count(b"]") > 1 and b"INST]" in raw)
    return None if marked and any(CONTROL_TOKEN.search(one.content) for one in messages) else messages


def _no_key_twice(raw: bytes, messages: list[_Plain]) -> bool:
    """Whether no key stands twice in a line without other keys and without ASCII characters spelled as numbers.

    Told by its quotation marks: each message needs eight, a weight two more, the line itself two, and those within
    texts are known; a further key, null too, would bring its own.
    """
    marks, needed = raw.count(b'"'), 8 * len(messages) + 2
    if marks == needed:
        return True
    for message in messages:
        needed += message.content.count('"') + 2 * (message.weight is not None)
    return marks == needed


def _no_name_twice(raw: bytes, messages: list[_Plain]) -> bool:
    """The same for any line, but False also where a text, an escape or another column only looks like a key."""
    number = len(messages)
    if raw.count(b'"role"') != number or raw.count(b'"content"') != number or raw.count(b'"messages"') != 1:
        return False
    if b'"weight"' in raw and raw.count(b'"weight"') != sum(message.weight is not None for message in messages):
        return False
    return b"\\u006" not in raw and b"\\u007" not in raw


def _beside_columns(raw: bytes) -> list[_Plain] | None:
    """The plain messages of a line with other columns, which are read too: they may hold what is no JSON."""
    try:
        raw.decode("utf-8")
        value = _ANY.decode(raw)
        if not isinstance(value, dict) or not _OTHER_COLUMNS.isdisjoint(value):
            return None
        return msgspec.convert(value.get("messages"), list[_Plain])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def main(arguments: list[str]) -> None:
    """`python -m smedje.data.scan FILE START END`: the segment as MessagePack on the standard output."""
    path, start, end = arguments
    sys.stdout.buffer.write(msgspec.msgpack.encode(scan_range(Path(path), int(start), int(end))))


if __name__ == "__main__":
    main(sys.argv[1:])
