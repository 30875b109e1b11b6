"""The check of a data file of any form; a large one in a process of its own, whose memory goes with it.

A server that takes files in must not grow with what its users send. Knows which check a file needs; knows no rule.
"""

import subprocess
import sys
from pathlib import Path

import msgspec

from smedje.data.forms import validate_any
from smedje.data.halves import WORTH_BYTES, child_environment
from smedje.data.report import Report

_DECODER = msgspec.msgpack.Decoder(Report)


def check_file(path: Path) -> Report:
    """The report of a file. Never raises for what is in the file."""
    if path.stat().st_size < WORTH_BYTES:
        return validate_any(path)
    command = [sys.executable, "-m", "smedje.data.apart", str(path.absolute())]
    child = subprocess.run(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=child_environment(), check=False
    )
    # As with halves: a child that was killed costs time and no result.
    return _DECODER.decode(child.stdout) if child.returncode == 0 else validate_any(path)


def main(arguments: list[str]) -> None:
    """`python -m smedje.data.apart FILE`: the report as MessagePack on the standard output."""
    sys.stdout.buffer.write(msgspec.msgpack.encode(validate_any(Path(arguments[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
