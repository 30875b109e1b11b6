"""Durable files on a local disk: written beside their place, flushed, then moved into it in one step.

Knows paths and the order of fsync and rename; knows nothing of keys, buckets or what the bytes mean.
obstore's own local store renames without fsync, so after a power loss a name could stand for an empty file.
Here the file is flushed before it gets its name and the folder after, so a name that was acknowledged keeps its bytes.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from smedje.objects.file_lock import try_lock

STAGING = ".staging"
MOVES = 100


@contextlib.contextmanager
def staged_file(root: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new empty file on the same file system as `root`, and its path. It is gone afterwards unless it was moved.

    It is locked while this process lives: `sweep_staging` takes what a killed one left. Raises OSError as the
    operating system does.
    """
    folder = root / STAGING
    make_folder(folder)
    while True:
        # The `#number` ending hides the file from obstore's listings (object_store's own rule for unfinished files).
        path = folder / f"{secrets.token_hex(16)}#1"
        file = path.open("xb")
        if _hold(file.fileno(), path):
            break
        file.close()
    try:
        yield file, path
    finally:
        # Closing flushes, which fails again on a full disk; that must not hide the error that brought us here.
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            path.unlink()


def settle(file: BinaryIO, path: Path, target: Path, *, create_only: bool = False) -> None:
    """Flush `file` (open at `path`) to disk and give it the name `target`, replacing what was there.

    create_only: raise FileExistsError instead of replacing; of several writers exactly one succeeds.
    Raises OSError as the operating system does; `target` is then as it was before.
    """
    file.flush()
    os.fsync(file.fileno())
    move(path, target, create_only=create_only)


def move(source: Path, target: Path, *, create_only: bool = False) -> None:
    """Rename within one file system, durably, making the folders that `target` needs."""
    for attempt in range(MOVES):
        try:
            make_folder(target.parent)
            if create_only:
                os.link(source, target)
            else:
                os.replace(source, target)
            break
        except FileNotFoundError:
            # Deleting the last object of a folder removes the folder, perhaps between the lines above. Whoever does so
            # has finished its own work, so trying again comes through; the pause lets two that meet each time part.
            if attempt == MOVES - 1 or not source.exists():
                raise
            time.sleep(secrets.randbelow(attempt + 1) / 1000)
    flush_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, each durable in its own parent.

    Raises OSError as the operating system does, but not where a file stands in the way: using the folder then tells.
    """
    missing = []
    at = folder
    while not at.is_dir():
        missing.append(at)
        at = at.parent
    for path in reversed(missing):
        # Not `exist_ok`: it looks again whether the folder that was there is one, and meanwhile that may be gone.
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """fsync a folder, so that the names in it survive a power loss. Does nothing where folders cannot be opened."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_staging(root: Path) -> int:
    """Delete the unfinished files of processes that are gone, at any time and beside any writers. Returns how many."""
    swept = 0
    for path in (root / STAGING).glob("*"):
        with contextlib.suppress(OSError), path.open("r+b") as file:
            if try_lock(file.fileno()):
                path.unlink()
                swept += 1
    return swept


@contextlib.contextmanager
def lent_folder(parent: Path, *, prefix: str) -> Iterator[Path]:
    """A new folder in `parent` that only this user can enter; gone afterwards, with what it then holds.

    Folders with this prefix whose processes were killed go first. Raises OSError as the operating system does.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _opened(left) as number:
            if try_lock(number):
                shutil.rmtree(left, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with _opened(folder) as number:
            if not _hold(number, folder):
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield number
    finally:
        os.close(number)


def _hold(number: int, path: Path) -> bool:
    """Lock what was just made; False when a sweep came in between. Where there are no locks nothing is swept."""
    try:
        return try_lock(number) and path.exists()
    except OSError:
        return True
