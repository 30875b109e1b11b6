"""One lock between processes, on a file. Knows nothing of what it guards. The system frees it when a process dies."""

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
            _lock(number)
        except OSError:
            os.close(number)
            return False
        self._number = number
        return True

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would let two processes hold two files of one name."""
        if self._number is not None:
            os.close(self._number)
            self._number = None


if sys.platform == "win32":
    import msvcrt

    def _lock(number: int) -> None:
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(number: int) -> None:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
