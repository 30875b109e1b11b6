"""What a command prints: JSON for programs, tables for people, progress only for a terminal.

Knows streams and rich; knows nothing of what the values mean.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# Wide enough that ids in a pipe are never folded.
PIPE_WIDTH = 400

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2), flush=True)


def print_json_line(value: Any) -> None:
    """One JSON value as one line, at once: an element of a stream."""
    print(json.dumps(value, ensure_ascii=False, separators=(",", ":")), flush=True)


def say(text: str) -> None:
    """A plain line on standard output."""
    print(text, flush=True)


def note(text: str) -> None:
    """A remark on standard error, which never mixes with a command's output."""
    print(text, file=sys.stderr, flush=True)


def shows_progress() -> bool:
    """Whether standard error is a terminal, so that moving text may be drawn on it."""
    return sys.stderr.isatty()


def console(*, stderr: bool = False) -> "Console":
    """A rich console on standard output or error. NO_COLOR is honoured; nothing is folded in a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table, or the sentence `empty` when there are no rows. None is shown as a dash."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text("-" if cell is None else str(cell), overflow="fold") for cell in row))
    if table.row_count:
        console().print(table)
    else:
        say(empty)


def print_fields(fields: Mapping[str, object]) -> None:
    """One object as lines of name and value. None is shown as a dash."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        say(f"{name:<{width}}  {'-' if value is None else value}")


def byte_progress() -> "Progress":
    """A progress display for bytes with speed and time left; silent unless standard error is a terminal."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        disable=not shows_progress(),
        transient=True,
    )


def when(seconds: object) -> str | None:
    """A Unix time in this machine's time zone, to the second."""
    if not isinstance(seconds, int | float):
        return None
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def size(count: object) -> str | None:
    """Bytes in words: 1.5 GB; powers of 1000."""
    if not isinstance(count, int | float):
        return None
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def duration(seconds: object) -> str | None:
    """Seconds as m:ss or h:mm:ss."""
    if not isinstance(seconds, int | float):
        return None
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
