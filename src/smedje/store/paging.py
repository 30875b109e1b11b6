"""Small pieces that the queries share: pages by cursor and inserts that leave an existing row alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, Row, Table, select

from smedje.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What is listed: the rows of `table` that meet `scope` and `filters`.

    A cursor must meet `scope` (whose rows they are) but need not meet `filters` (which of them are wanted).
    """

    table: Table
    scope: Sequence[ColumnElement[bool]]
    filters: Sequence[ColumnElement[bool]] = ()


def page(tx: Connection, listing: Listing, *, after: str | None, limit: int, order: str = "desc") -> Sequence[Row[Any]]:
    """At most `limit` rows, newest first or oldest first (order "asc").

    after: id of the last row already seen. Raises NotFound when nothing in scope has it.
    """
    table, scope = listing.table, listing.scope
    newest_first = order == "desc"
    query = select(table).where(*scope, *listing.filters).limit(limit)
    if after is not None:
        seen = tx.scalar(select(table.c.seq).where(*scope, table.c.id == after))
        if seen is None:
            raise NotFound(f"There is nothing with the id {after[:100]!r} to go on after.", param="after")
        query = query.where(table.c.seq < seen if newest_first else table.c.seq > seen)
    return tx.execute(query.order_by(table.c.seq.desc() if newest_first else table.c.seq)).all()


def insert_if_new(tx: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless one with the same unique values exists; returns whether it was inserted."""
    done = tx.execute(_insert(tx, table).values(**values).on_conflict_do_nothing().returning(table.c.seq))
    return done.first() is not None


def _insert(tx: Connection, table: Table) -> "postgresql.Insert | sqlite.Insert":
    # Imported here: a process talks to one kind of database, and PostgreSQL's words alone take 2 MB.
    if tx.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)


def plain(text: str) -> str:
    """`text` without what PostgreSQL cannot keep: NUL and lone surrogates. For words that programs wrote."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
