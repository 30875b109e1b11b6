"""Which SQLite this process uses, and how a connection to it is set up.

Some versions of SQLite can corrupt a WAL database that several connections write (https://sqlite.org/wal.html,
"The WAL-Reset Bug"): 3.7.0 to 3.51.2, mended also in 3.44.6 and 3.50.7. The pysqlite3 wheel carries a newer one; where
there is no wheel, the standard library's module is used, without WAL if it is affected.
"""

import sqlite3
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

BUSY_SECONDS = 10.0
FIRST_AFFECTED = (3, 7, 0)
FIRST_MENDED = (3, 51, 3)
MENDED_BRANCHES = {(3, 44): 6, (3, 50): 7}


def sqlite_module() -> ModuleType:
    """pysqlite3's DB-API module where it is installed, else the standard library's."""
    try:
        from pysqlite3 import dbapi2
    except ImportError:
        return sqlite3
    module: ModuleType = dbapi2
    return module


def sqlite_version_problem(version: str | None = None) -> str | None:
    """What is wrong with the SQLite in use (or with the `version` given) and what to do; None when all is well."""
    found = version or str(sqlite_module().sqlite_version)
    parts = tuple(int(part) for part in found.split("."))
    branch, patch = (parts[0], parts[1]), parts[2] if len(parts) > 2 else 0
    mended = parts >= FIRST_MENDED or patch >= MENDED_BRANCHES.get(branch, patch + 1)
    if parts < FIRST_AFFECTED or mended:
        return None
    return (
        f"SQLite {found} can corrupt a database in WAL mode, so smedje uses the slower rollback journal. "
        "Install the pysqlite3 package, or use PostgreSQL with SMEDJE_DATABASE_URL."
    )


def create_private(path: Path) -> None:
    """Make an empty database file that only its owner may read; SQLite gives its side files the same rights."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=True)


def set_up(connection: Any) -> None:
    """Make a fresh DB-API connection durable, strict and patient. We begin transactions ourselves.

    FULL: a commit that returned survives a power loss; NORMAL with WAL would lose it.
    """
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    _set_journal(cursor, "DELETE" if sqlite_version_problem() else "WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    # What is deleted is overwritten, so that an erased text is not in the file any more.
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.close()


def _set_journal(cursor: Any, mode: str) -> None:
    # SQLite does not apply busy_timeout while it changes the journal mode of a database that others are opening.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute(f"PRAGMA journal_mode = {mode}")
            return
        except sqlite_module().OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        threading.Event().wait(0.01)
