"""The database: transactions, the schema's history, and how failures are told."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable
from tests.databases import Postgres

from smedje.domain.projects import Hub
from smedje.errors import Conflict, InvalidRequest, OutOfStorage, Unavailable
from smedje.store.database import Database
from smedje.store.migrate import newest
from smedje.store.projects import insert_hub, list_hubs
from smedje.store.sqlite import sqlite_version_problem
from smedje.store.tables import SCHEMA, tables

SNAPSHOT = Path(__file__).with_name("store_schema.sql")


def hub(number: int) -> Hub:
    """Some hub."""
    return Hub(id=f"hub_{number}", name=f"h{number}", display_name="H", location="local", created_at=number)


def test_a_migrated_database_is_what_tables_say(empty_database_url: str) -> None:
    """Running all migrations on nothing gives exactly the tables, columns, keys and indexes of tables.py."""
    database = Database(empty_database_url)
    database.migrate()
    with database.transaction() as tx:
        context = MigrationContext.configure(tx, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, tables)
        found = {name: inspect(tx).get_foreign_keys(name) for name in tables.tables}
        wanted = {name: table.foreign_keys for name, table in tables.tables.items()}
    database.close()
    assert differences == []
    assert {name: len(keys) for name, keys in found.items()} == {name: len(keys) for name, keys in wanted.items()}


def test_the_schema_is_frozen() -> None:
    """A change of the tables shows here. If it is meant, write a migration, raise SCHEMA, and run this file as a
    program to renew the snapshot."""
    assert SNAPSHOT.read_text() == snapshot()
    assert newest() == SCHEMA


def test_every_row_of_a_project_says_so() -> None:
    """Every table but those above projects has project_id, not null, with a foreign key."""
    people = ("members", "assignments", "custom_roles", "sessions", "sign_in_attempts")
    above = ("hubs", "projects", *people, "audit", "prices", "locations")
    for name, table in tables.tables.items():
        if name not in above:
            column = table.c.project_id
            assert not column.nullable
            assert [key.target_fullname for key in column.foreign_keys] == ["projects.id"]


def test_what_was_deleted_is_not_in_the_file(tmp_path: Path) -> None:
    """After a deletion and a scrub neither the SQLite file nor its log holds the text."""
    database = Database(f"sqlite:///{tmp_path / 'a.db'}")
    database.migrate()
    with database.transaction() as tx:
        insert_hub(tx, replace(hub(1), description="CANARY-4711" * 20))
    database.scrub()
    assert b"CANARY-4711" in (tmp_path / "a.db").read_bytes()
    with database.transaction() as tx:
        tx.exec_driver_sql("DELETE FROM hubs")
    database.scrub()
    assert not any(b"CANARY-4711" in path.read_bytes() for path in tmp_path.iterdir())
    database.close()


def test_migrating_twice_changes_nothing(empty_database_url: str) -> None:
    """A second start finds everything in place and keeps the data."""
    database = Database(empty_database_url)
    database.migrate()
    with database.transaction() as tx:
        insert_hub(tx, hub(1))
    database.migrate()
    database.ping()
    with database.transaction() as tx:
        assert list_hubs(tx) == [hub(1)]
    database.close()


def migrate_once(url: str, start: Event) -> None:
    """What a server does when it starts."""
    database = Database(url)
    start.wait()
    database.migrate()
    database.ping()
    database.close()


def test_servers_may_start_together(empty_database_url: str) -> None:
    """Several processes that migrate a new database at once all end well."""
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Event()
    servers = [spawn.Process(target=migrate_once, args=(empty_database_url, start)) for _ in range(4)]
    for server in servers:
        server.start()
    start.set()
    for server in servers:
        server.join(60)
    assert [server.exitcode for server in servers] == [0] * 4


def test_a_newer_schema_is_refused(database: Database) -> None:
    """A database that a later version made is left alone, with words on what to do."""
    with database.transaction() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Conflict, match="newer than this version"):
        database.migrate()
    with pytest.raises(Unavailable, match="9999"):
        database.ping()


def test_an_empty_database_is_not_ready(empty_database_url: str) -> None:
    """Readiness tells that migrations have not run."""
    database = Database(empty_database_url)
    with pytest.raises(Unavailable, match="empty"):
        database.ping()
    database.close()


def test_a_failed_block_changes_nothing(database: Database) -> None:
    """An exception in the block rolls everything back and comes out as it is."""

    def block() -> None:
        with database.transaction() as tx:
            insert_hub(tx, hub(1))
            raise KeyError

    with pytest.raises(KeyError):
        block()
    with database.transaction() as tx:
        assert list_hubs(tx) == []


def test_a_unique_row_twice_is_a_conflict(database: Database) -> None:
    """Whatever the query, a second row with the same unique value is told as a conflict, without quoting values."""
    insert = text("INSERT INTO hubs (id, name, display_name, location, created_at) VALUES ('i', 'secret', 'd', 'l', 1)")
    with database.transaction() as tx:
        tx.execute(insert)
    with pytest.raises(Conflict) as caught, database.transaction() as tx:
        tx.execute(insert)
    assert caught.value.code == "already_exists"
    assert "secret" not in caught.value.message


def test_transactions_do_not_nest(database: Database) -> None:
    """A second transaction in the same thread would wait for the first one for ever, so it is refused at once."""
    with database.transaction(), pytest.raises(AssertionError), database.transaction():
        pass
    with database.transaction() as tx:
        assert list_hubs(tx) == []


def test_threads_do_not_disturb_each_other(database: Database) -> None:
    """Many threads read, decide and write; no update is lost and none fails for a lock."""
    with database.transaction() as tx:
        insert_hub(tx, hub(0))

    def count(_: int) -> None:
        with database.transaction() as tx:
            lock = "" if database.kind == "sqlite" else " FOR UPDATE"
            seen = tx.execute(text(f"SELECT created_at FROM hubs WHERE id = 'hub_0'{lock}")).scalar_one()
            tx.execute(text("UPDATE hubs SET created_at = :n WHERE id = 'hub_0'"), {"n": seen + 1})

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(count, range(200)))
    with database.transaction() as tx:
        assert list_hubs(tx)[0].created_at == 200


def test_committed_rows_survive_kill_9(database: Database, database_url: str) -> None:
    """A process killed at any moment loses no row that it had committed, and leaves no half transaction."""
    program = (
        "import sys\nfrom smedje.store.database import Database\nfrom smedje.store.projects import insert_hub\n"
        "from smedje.domain.projects import Hub\n"
        f"database = Database({database_url!r})\nn = 0\n"
        "while True:\n"
        "    with database.transaction() as tx:\n"
        "        for n in (n + 1, n + 2):\n"
        "            insert_hub(tx, Hub(id=f'{n}', name=f'{n}', display_name='', location='', created_at=n))\n"
        "    print(n, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(25):
        said = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    with database.transaction() as tx:
        rows = [one.created_at for one in list_hubs(tx)]
    assert rows == list(range(1, len(rows) + 1))
    assert len(rows) >= said
    assert len(rows) % 2 == 0


@pytest.mark.parametrize(
    "url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://u:hunter2@h/d", "postgresql+asyncpg://h/d"]
)
def test_other_databases_are_refused(url: str) -> None:
    """A URL of another kind is the user's mistake; the message shows no password."""
    with pytest.raises(InvalidRequest, match="postgresql://user") as caught:
        Database(url)
    assert "hunter2" not in caught.value.message


def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    """No server behind the address, or a folder in the place of the file: told as such, with what to do."""
    for url in (f"postgresql://nobody:hunter2@/none?host={tmp_path}", f"sqlite:///{tmp_path}"):
        database = Database(url)
        with pytest.raises(Unavailable, match="doctor") as caught:
            database.migrate()
        assert "hunter2" not in caught.value.message
        database.close()


def test_a_busy_postgres_row_is_told(postgres: Postgres) -> None:
    """Waiting for a row that another transaction holds ends with `database_busy`, not with a hanging server."""
    url = postgres.create(migrated=True)
    database = Database(url + "&options=-c%20lock_timeout%3D100ms")
    held, release = threading.Event(), threading.Event()
    with database.transaction() as tx:
        insert_hub(tx, hub(1))

    def hold() -> None:
        with database.transaction() as tx:
            tx.execute(text("SELECT 1 FROM hubs FOR UPDATE"))
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    with pytest.raises(Unavailable) as caught, database.transaction() as tx:
        tx.execute(text("SELECT 1 FROM hubs FOR UPDATE"))
    release.set()
    holder.join()
    assert caught.value.code == "database_busy"
    database.close()
    postgres.drop(url)


def test_sqlite_is_durable_and_strict(sqlite_database: Database) -> None:
    """The settings that the promises rest on are really in force."""
    with sqlite_database.transaction() as tx:
        wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10000}
        assert {name: tx.exec_driver_sql(f"PRAGMA {name}").scalar() for name in wanted} == wanted


def test_a_sqlite_file_is_private(tmp_path: Path) -> None:
    """The file, its folder and SQLite's side files are for their owner alone."""
    database = Database(f"sqlite:///{tmp_path / 'state' / 'smedje.db'}")
    database.migrate()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()} == {0o600}
    database.close()


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ("3.6.23", False), ("3.7.0", True), ("3.40.1", True), ("3.44.5", True), ("3.44.6", False), ("3.45.0", True),
        ("3.50.6", True), ("3.50.7", False), ("3.51.2", True), ("3.51.3", False), ("3.53.4", False), ("4.0.0", False),
    ],
)  # fmt: skip
def test_versions_of_sqlite_with_the_wal_bug_are_known(version: str, affected: bool) -> None:
    """Exactly the versions that sqlite.org names are told apart; the words say what to do."""
    problem = sqlite_version_problem(version)
    assert (problem is not None) == affected
    assert problem is None or "pysqlite3" in problem


def test_a_full_disk_is_out_of_storage(tmp_path: Path) -> None:
    """When SQLite's disk fills up the write is refused as such, earlier rows stay, and it works again with room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mount.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        database = Database(f"sqlite:///{disk / 'smedje.db'}")
        database.migrate()
        filler = disk / "filler"
        filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - 100_000))
        done = 0

        def fill() -> None:
            nonlocal done
            while done < 1000:
                with database.transaction() as tx:
                    insert_hub(tx, replace(hub(done), display_name="x" * 5000))
                done += 1

        with pytest.raises(OutOfStorage):
            fill()
        with database.transaction() as tx:
            assert len(list_hubs(tx)) == done > 0
        filler.unlink()
        with database.transaction() as tx:
            insert_hub(tx, hub(5000))
            assert tx.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        database.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_command_line_does_not_load_the_store() -> None:
    """Importing the domain, or the fast parts of the product, does not load SQLAlchemy."""
    program = "import smedje.domain.jobs, smedje.objects.run_folder, sys; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def snapshot() -> str:
    """The schema in PostgreSQL's words."""
    parts = []
    for table in tables.sorted_tables:
        parts.append(str(CreateTable(table).compile(dialect=postgresql.dialect())).strip())
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        parts += [str(CreateIndex(index).compile(dialect=postgresql.dialect())).strip() for index in indexes]
    return ";\n\n".join(line.replace("\t", "    ") for line in parts).replace(" \n", "\n") + ";\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot())
