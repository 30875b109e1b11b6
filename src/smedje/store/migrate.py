"""Runs the migrations inside the caller's transaction. Knows Alembic; loaded only when there is something to do."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

FOLDER = Path(__file__).parent / "migrations"


def upgrade(tx: Connection) -> None:
    """All migrations that this database lacks, in order. Commits nothing itself."""
    settings = _settings()
    settings.attributes["connection"] = tx
    command.upgrade(settings, "head")


def newest() -> str | None:
    """Number of the newest migration file."""
    return ScriptDirectory.from_config(_settings()).get_current_head()


def _settings() -> Config:
    settings = Config()
    settings.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return settings
