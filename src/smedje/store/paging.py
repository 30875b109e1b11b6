"""Small pieces that the queries share: pages by cursor and inserts that leave an existing row alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from smedje.errors import NotFound


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
    insert = postgresql.insert if tx.dialect.name == "postgresql" else sqlite.insert
    done = tx.execute(insert(table).values(**values).on_conflict_do_nothing().returning(table.c.seq))
    return done.first() is not None


def plain(text: str) -> str:
    """`text` without what PostgreSQL cannot keep: NUL and lone surrogates. For words that programs wrote."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
