"""An older database with rows in it is brought up to date and means the same afterwards."""

from pathlib import Path

from alembic import command
from alembic.config import Config

import smedje.store
from smedje.domain.projects import Scope
from smedje.services.projects import secret_digest
from smedje.store import projects as rows
from smedje.store.database import Database

MIGRATIONS = Path(smedje.store.__file__).with_name("migrations")
OLD_ROWS = (
    "INSERT INTO hubs (id, name, display_name, location, created_at) VALUES ('hub_1', 'default', 'D', 'local', 1)",
    "INSERT INTO projects (id, hub_id, name, description, created_at) VALUES ('proj_1', 'hub_1', 'default', 'd', 1)",
    "INSERT INTO projects (id, hub_id, name, description, created_at) VALUES ('proj_2', 'hub_1', 'other', 'd', 1)",
)


def test_the_first_schema_with_rows_comes_up_to_date(empty_database_url: str) -> None:
    """Hubs, projects and keys keep their values; the first run's owner key holds for the server, others as before."""
    database = Database(empty_database_url)
    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS))
    with database.transaction() as tx:
        settings.attributes["connection"] = tx
        command.upgrade(settings, "0001")
        for statement in OLD_ROWS:
            tx.exec_driver_sql(statement)
        for number, (project, name) in enumerate((("proj_1", "owner"), ("proj_1", "second"), ("proj_2", "owner"))):
            tx.exec_driver_sql(
                "INSERT INTO api_keys (id, project_id, name, role, prefix, last_four, sha256, created_at) VALUES "
                f"('key_{number}', '{project}', '{name}', 'owner', 'p', 'l', '{secret_digest(str(number))}', 1)"
            )
    database.migrate()
    database.ping()
    with database.transaction() as tx:
        [hub] = rows.list_hubs(tx)
        found = [rows.find_key(tx, secret_digest(str(number))) for number in range(3)]
        projects = rows.list_projects(tx)
    database.close()
    assert (hub.name, hub.location, hub.description, hub.tags, hub.archived_at) == ("default", "local", "", {}, None)
    assert [project.name for project in projects] == ["default", "other"]
    assert [key.scope for key in found if key] == [Scope.SERVER, Scope.PROJECT, Scope.PROJECT]
    assert all(key is not None and key.member_id is None and key.permissions is None for key in found)
