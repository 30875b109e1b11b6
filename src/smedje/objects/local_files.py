"""Durable files on a local disk: written beside their place, flushed, then moved into it in one step.

Knows paths and the order of fsync and rename; knows nothing of keys, buckets or what the bytes mean.
obstore's own local store renames without fsync, so after a power loss a name could stand for an empty file.
Here the file is flushed before it gets its name and the folder after, so a name that was acknowledged keeps its bytes.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

STAGING = ".staging"
MOVES = 5


@contextlib.contextmanager
def staged_file(root: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new empty file on the same file system as `root`, and its path. It is gone afterwards unless it was moved.

    Raises OSError as the operating system does.
    """
    folder = root / STAGING
    make_folder(folder)
    # The `#number` ending hides the file from obstore's listings (object_store's own rule for unfinished files).
    path = folder / f"{secrets.token_hex(16)}#1"
    file = path.open("xb")
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
        make_folder(target.parent)
        try:
            if create_only:
                os.link(source, target)
            else:
                os.replace(source, target)
            break
        except FileNotFoundError:
            # Deleting the last object of a folder removes the folder, perhaps between the two lines above.
            if attempt == MOVES - 1 or not source.exists():
                raise
    flush_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, each durable in its own parent."""
    missing = []
    at = folder
    while not at.is_dir():
        missing.append(at)
        at = at.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True, parents=True)
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


def sweep_staging(root: Path, *, older_than_seconds: float) -> int:
    """Delete unfinished files that a killed process left behind. Returns how many.

    older_than_seconds: how long nothing may have been written to a file before it counts as left behind.
    """
    swept = 0
    for path in (root / STAGING).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > older_than_seconds:
                path.unlink()
                swept += 1
    return swept
