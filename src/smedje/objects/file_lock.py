"""Locks between processes, on files. Knows nothing of what they guard. The system frees them when a process dies."""

import os
import sys
from pathlib import Path


class FileLock:
    """An advisory lock that one process holds at a time. `acquire` does not wait; `release` may be called twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False when another holder has it."""
        assert self._number is None, "already held"
        number = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            taken = try_lock(number)
        except OSError:
            taken = False
        if not taken:
            os.close(number)
            return False
        self._number = number
        return True

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would let two processes hold two files of one name."""
        if self._number is not None:
            os.close(self._number)
            self._number = None


def try_lock(number: int) -> bool:
    """Lock an open file or folder until it is closed; False when another has it open and locked.

    Raises OSError where the file system knows no locks.
    """
    try:
        _lock(number)
    except BlockingIOError:
        return False
    return True


if sys.platform == "win32":
    import msvcrt

    def _lock(number: int) -> None:
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(number: int) -> None:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
