"""The lines of a JSON Lines file as bytes, with bounded memory. Knows line ends and byte-order marks; knows no JSON."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

LONGEST_LINE = 16 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """One line. number: 1-based. raw: its bytes without byte-order mark and line end, None when longer than 16 MiB."""

    number: int
    raw: bytes | None

    @property
    def blank(self) -> bool:
        """Whether there is nothing but white space."""
        return self.raw is not None and not self.raw.strip()


def read_lines(source: Path | BinaryIO) -> Iterator[Line]:
    """Every line of `source` up to the last that is not blank; a byte-order mark and CRLF line ends are accepted."""
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
        told = 0
        for line in _all_lines(stream):
            if not line.blank:
                yield from (Line(number, b"") for number in range(told + 1, line.number))
                yield line
                told = line.number


def _all_lines(stream: BinaryIO) -> Iterator[Line]:
    number = 0
    while raw := stream.readline(LONGEST_LINE + 2):
        number += 1
        if number == 1:
            raw = raw.removeprefix(_BOM)
        if not raw.endswith(b"\n") and len(raw) >= LONGEST_LINE:
            _skip_line(stream)
            yield Line(number, None)
        else:
            yield Line(number, raw.removesuffix(b"\n").removesuffix(b"\r"))


def _skip_line(stream: BinaryIO) -> None:
    while rest := stream.readline(LONGEST_LINE):
        if rest.endswith(b"\n"):
            return
