"""A file's segments from as many processes as are worth it, and the copies among their examples.

Children are plain interpreters of this package that read their range and answer on their standard output: nothing is
inherited, so threads and open sockets of a server do not matter. Knows no rule.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from smedje.data.scan import Segment, next_line, scan_range
from smedje.objects.machine import usable_cores

# Below this, starting interpreters costs more than it saves.
WORTH_BYTES = 24 * 1024 * 1024
MOST_PROCESSES = 2
_DECODER = msgspec.msgpack.Decoder(Segment)


def worthwhile_processes(size: int) -> int:
    """How many processes are worth it for a file of `size` bytes on this machine."""
    return min(MOST_PROCESSES, usable_cores()) if size >= WORTH_BYTES else 1


def scan_file(path: Path, size: int, *, processes: int) -> list[Segment]:
    """The segments of the whole file, in order; at least one."""
    if processes == 1 or size == 0:
        return [scan_range(path, 0, size)]
    cuts = [0, *(next_line(path, size * part // processes) for part in range(1, processes)), size]
    ranges = [(start, end) for start, end in pairwise(cuts) if start < end]
    children = [_child(path, start, end) for start, end in ranges]
    return [_segment(child, path, span) for child, span in zip(children, ranges, strict=True)]


def find_copies(segments: Sequence[Segment], starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(line, line of the first example with the same digest) for every copy, by line. starts: lines before each."""
    import numpy as np

    digests = np.concatenate([np.frombuffer(found.digests, dtype="<u8") for found in segments])
    lines = np.concatenate(
        [
            np.frombuffer(found.digest_lines, dtype=np.uint32).astype(np.int64) + start
            for found, start in zip(segments, starts, strict=True)
        ]
    )
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    fresh = np.ones(len(ordered), dtype=bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    firsts = order[np.maximum.accumulate(np.where(fresh, np.arange(len(ordered)), 0))] if len(ordered) else order
    copies = sorted(zip(lines[order[~fresh]].tolist(), lines[firsts[~fresh]].tolist(), strict=True))
    yield from copies


def child_environment() -> dict[str, str]:
    """This process's environment without the server's settings: rules of a file need no secret."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SMEDJE_")}


def _child(path: Path, start: int, end: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "smedje.data.scan", str(path.absolute()), str(start), str(end)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=child_environment())


def _segment(child: "subprocess.Popen[bytes]", path: Path, span: tuple[int, int]) -> Segment:
    answer, _ = child.communicate()
    # A child that was killed, for memory perhaps, costs time and no result.
    return _DECODER.decode(answer) if child.returncode == 0 else scan_range(path, *span)
