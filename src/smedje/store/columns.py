"""What the tables have in common: how keys and indexes are named, and the columns that many of them have."""

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Integer, MetaData, Text
from sqlalchemy.types import TypeEngine

tables = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def seq() -> "Column[int]":
    """The primary key, counting up."""
    # SQLite counts up, never reusing a number, only in a column of exactly this type.
    return Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)


def own_id() -> "Column[str]":
    """The id by which others know the row."""
    return Column("id", Text, nullable=False, unique=True)


def project() -> "Column[str]":
    """The project that the row belongs to."""
    return Column("project_id", Text, ForeignKey("projects.id"), nullable=False)


def job() -> "Column[str]":
    """The job that the row belongs to."""
    return Column("job_id", Text, ForeignKey("jobs.id"), nullable=False)


def at(name: str, *, nullable: bool = False) -> "Column[int]":
    """A time, in Unix seconds."""
    return Column(name, BigInteger, nullable=nullable)


def json() -> TypeEngine[object]:
    """A small JSON value."""
    return JSON(none_as_null=True)
