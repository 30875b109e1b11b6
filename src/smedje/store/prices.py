"""Queries for price tables: appended, never changed."""

from sqlalchemy import Connection, select

from smedje.domain.prices import BUILT_IN, PriceTable
from smedje.store.tables import prices


def insert_prices(tx: Connection, table: PriceTable) -> None:
    """Append a table that holds from its valid_from on; its version counts by itself."""
    values = {name: value for name, value in vars(table).items() if name != "version"}
    tx.execute(prices.insert().values(**values))


def list_prices(tx: Connection) -> list[PriceTable]:
    """Every table in the order in which they came to hold, the built-in one first."""
    rows = tx.execute(select(prices).order_by(prices.c.valid_from, prices.c.seq))
    found = [BUILT_IN]
    for row in rows:
        values = row._asdict()
        del values["seq"]
        found.append(PriceTable(version=len(found), **values))
    return found
