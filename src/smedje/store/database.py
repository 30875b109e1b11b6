"""The database: one engine, transactions, and the schema brought up to date. SQLite or PostgreSQL.

Knows connections and how databases fail; knows nothing of what the rows mean. Synchronous: call it from threads.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from smedje.errors import Conflict, InternalError, InvalidRequest, OutOfStorage, SmedjeError, Unavailable
from smedje.store import sqlite
from smedje.store.tables import SCHEMA

# Any number that nothing else in the same PostgreSQL database uses for advisory locks.
MIGRATION_LOCK = 0x536D6564_6A65
POSTGRES_NAMES = ("postgresql", "postgres", "postgresql+psycopg")
# A process that is frozen in the middle of a transaction must not hold its locks for ever.
POSTGRES_OPTIONS = "-c lock_timeout=10s -c idle_in_transaction_session_timeout=60s"


class Database:
    """Owns the connections to one database. Safe to use from several threads."""

    def __init__(self, url: str) -> None:
        """`sqlite:///path` (made if missing, readable by its owner alone) or `postgresql://...`.

        Nothing is connected yet. Raises InvalidRequest for any other URL.
        """
        self._engine = _make_engine(url)
        self._open = threading.local()

    @property
    def kind(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction: committed when the block ends, rolled back when it fails.

        SQLite: one at a time for all processes, and what is read cannot change before it is written (BEGIN IMMEDIATE).
        PostgreSQL: read committed; lock rows that a decision rests on (`get_job(lock=True)`, leases).
        A transaction inside another of the same thread is a mistake. Raises Unavailable when the database cannot be
        reached or stays locked, OutOfStorage when it is full, Conflict for a row that exists already.
        """
        assert not getattr(self._open, "now", False), "a transaction is already open in this thread"
        self._open.now = True
        try:
            with self._engine.begin() as tx:
                yield tx
        except SQLAlchemyError as error:
            raise _explained(error) from error
        finally:
            self._open.now = False

    def ping(self) -> None:
        """Raises Unavailable when the database does not answer or its schema is not this version's."""
        with self.transaction() as tx:
            found = _schema(tx)
        if found != SCHEMA:
            raise Unavailable(
                f"The database's schema is {found or 'empty'}, this version needs {SCHEMA}.", code="database_schema"
            )

    def migrate(self) -> None:
        """Bring the schema up to date, in one transaction. Safe to repeat, and for several processes at once.

        Raises Conflict when the database was made by a newer version.
        """
        with self.transaction() as tx:
            if tx.dialect.name == "postgresql":
                tx.execute(text("SET LOCAL lock_timeout = 0"))
                tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            found = _schema(tx)
            if found == SCHEMA:
                return
            if found is not None and found > SCHEMA:
                raise Conflict(
                    f"The database has schema {found}, newer than this version's {SCHEMA}. Upgrade smedje, or restore "
                    "the backup that was made before the upgrade.",
                    code="database_newer",
                )
            # Imported here: it takes longer than the rest of this package, and only a first start needs it.
            from smedje.store.migrate import upgrade

            upgrade(tx)

    def scrub(self) -> None:
        """Have nothing that was deleted stay in SQLite's log beside the file. PostgreSQL cleans up by itself, later."""
        if self.kind == "sqlite":
            with contextlib.closing(self._engine.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").close()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _schema(tx: Connection) -> str | None:
    if not inspect(tx).has_table("alembic_version"):
        return None
    found = tx.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _make_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is not None and parsed.drivername == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return _sqlite_engine(parsed)
    if parsed is not None and parsed.drivername in POSTGRES_NAMES:
        return _postgres_engine(parsed)
    shown = parsed.render_as_string(hide_password=True) if parsed is not None else url.partition(":")[0]
    raise InvalidRequest(
        f"The database cannot be {shown!r}. Use sqlite:///path/to/file.db or postgresql://user:password@host/name.",
        code="invalid_database_url",
        param="database_url",
    )


def _sqlite_engine(url: URL) -> Engine:
    path = Path(url.database or "")
    engine = create_engine(
        url,
        module=sqlite.sqlite_module(),
        connect_args={"timeout": sqlite.BUSY_SECONDS},
        pool_size=8,
        max_overflow=32,
        hide_parameters=True,
        json_serializer=_to_json,
        json_deserializer=msgspec.json.decode,
    )

    @event.listens_for(engine, "do_connect")
    def create(*_: Any) -> None:
        sqlite.create_private(path)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        sqlite.set_up(connection)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgres_engine(url: URL) -> Engine:
    arguments = {} if "options" in url.query else {"options": POSTGRES_OPTIONS}
    try:
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={"connect_timeout": 10, **arguments},
            pool_size=8,
            max_overflow=32,
            pool_pre_ping=True,
            hide_parameters=True,
            json_serializer=_to_json,
            json_deserializer=msgspec.json.decode,
        )
    except ModuleNotFoundError as error:
        raise Unavailable(
            "PostgreSQL needs the psycopg package. Install it with: pip install 'smedje[postgres]'",
            code="postgres_driver_missing",
        ) from error


def _to_json(value: object) -> str:
    # NaN and infinity, which JSON lacks and PostgreSQL refuses, become null.
    return msgspec.json.encode(value).decode()


def _explained(error: SQLAlchemyError) -> SmedjeError:
    """Our error for a database's. The original text stays in the chain: it may quote what people sent."""
    origin = getattr(error, "orig", None)
    words, state = str(origin).lower(), str(getattr(origin, "sqlstate", None) or "")
    if isinstance(error, IntegrityError):
        if state == "23505" or "unique constraint" in words:
            return Conflict("Something with the same name or id was made already.", code="already_exists")
        return InternalError("A row refers to something that is not there.", code="database_integrity")
    if state == "53100" or "disk is full" in words or "no space left" in words:
        return OutOfStorage("The database's disk is full; nothing was changed. Free some space, then try again.")
    if isinstance(error, PoolTimeout) or "locked" in words or state in ("55P03", "40001", "40P01"):
        return Unavailable("The database is busy; nothing was changed. Try again.", code="database_busy")
    if state.startswith("22") or isinstance(error, DataError) or isinstance(origin, UnicodeError):
        return InvalidRequest("A text or number in the request cannot be stored.", code="invalid_value")
    if state and not state.startswith(("08", "25", "53", "57", "28", "3D")):
        return InternalError(f"The database refused a statement ({state}).", code="database_failed")
    return Unavailable(
        f"The database cannot be used ({type(origin or error).__name__}). Check that it runs and that its disk is "
        "well; `smedje doctor` says more.",
        code="database_unavailable",
    )
