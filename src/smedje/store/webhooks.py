"""Queries for webhooks and the deliveries that wait for them."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from smedje.domain.webhooks import Delivery, DeliveryState, EventType, Webhook
from smedje.store.paging import Listing, page
from smedje.store.tables import deliveries, webhooks


def insert_webhook(tx: Connection, webhook: Webhook) -> None:
    """Record a new webhook."""
    tx.execute(insert(webhooks).values(**_values(webhook)))


def get_webhook(tx: Connection, project_id: str, webhook_id: str) -> Webhook | None:
    """The project's webhook with this id."""
    row = tx.execute(select(webhooks).where(webhooks.c.project_id == project_id, webhooks.c.id == webhook_id)).first()
    return None if row is None else _webhook(row)


def list_webhooks(tx: Connection, project_id: str, *, after: str | None = None, limit: int) -> list[Webhook]:
    """At most `limit` webhooks, newest first. Raises NotFound for an unknown `after`."""
    listing = Listing(table=webhooks, scope=[webhooks.c.project_id == project_id])
    return [_webhook(row) for row in page(tx, listing, after=after, limit=limit)]


def active_webhooks(tx: Connection, project_id: str) -> list[Webhook]:
    """The project's webhooks that are not disabled."""
    rows = tx.execute(select(webhooks).where(webhooks.c.project_id == project_id, webhooks.c.disabled_at.is_(None)))
    return [_webhook(row) for row in rows]


def save_webhook(tx: Connection, webhook: Webhook) -> None:
    """Write every field of a webhook."""
    tx.execute(update(webhooks).where(webhooks.c.id == webhook.id).values(**_values(webhook)))


def delete_webhook(tx: Connection, project_id: str, webhook_id: str) -> None:
    """Forget a webhook with its deliveries."""
    tx.execute(delete(deliveries).where(deliveries.c.webhook_id == webhook_id, deliveries.c.project_id == project_id))
    tx.execute(delete(webhooks).where(webhooks.c.id == webhook_id, webhooks.c.project_id == project_id))


def insert_delivery(tx: Connection, delivery: Delivery) -> None:
    """Put an event into the queue."""
    tx.execute(insert(deliveries).values(**asdict(delivery)))


def take_due(tx: Connection, *, now: int, hold: int, limit: int) -> list[tuple[Delivery, Webhook]]:
    """Deliveries whose time has come, oldest first; nobody else takes them for `hold` seconds.

    So a sender that dies leaves them to be taken again, and each is sent at least once.
    """
    waiting = (deliveries.c.state == DeliveryState.PENDING.value, deliveries.c.next_at <= now)
    due = select(deliveries).where(*waiting).order_by(deliveries.c.next_at).limit(limit)
    found = [_delivery(row) for row in tx.execute(due.with_for_update(skip_locked=True))]
    ids = [one.id for one in found]
    tx.execute(update(deliveries).where(deliveries.c.id.in_(ids)).values(next_at=now + hold))
    rows = tx.execute(select(webhooks).where(webhooks.c.id.in_({one.webhook_id for one in found})))
    named = {row.id: _webhook(row) for row in rows}
    return [(one, named[one.webhook_id]) for one in found]


def save_delivery(tx: Connection, delivery: Delivery) -> None:
    """Write what came of an attempt; nothing when the webhook was deleted meanwhile."""
    names = ("state", "attempts", "next_at", "status", "problem", "ended_at")
    values = {name: getattr(delivery, name) for name in names}
    tx.execute(update(deliveries).where(deliveries.c.id == delivery.id).values(**values))


def lock_webhook(tx: Connection, webhook_id: str) -> Webhook | None:
    """The webhook as it is now; nobody else changes it before this transaction ends."""
    row = tx.execute(select(webhooks).where(webhooks.c.id == webhook_id).with_for_update()).first()
    return None if row is None else _webhook(row)


def end_deliveries(tx: Connection, webhook_id: str, *, now: int, problem: str) -> None:
    """Give up on everything that waits for a webhook."""
    waiting = (deliveries.c.webhook_id == webhook_id, deliveries.c.state == DeliveryState.PENDING.value)
    tx.execute(
        update(deliveries).where(*waiting).values(state=DeliveryState.FAILED.value, problem=problem, ended_at=now)
    )


def list_deliveries(
    tx: Connection, project_id: str, webhook_id: str, *, after: str | None, limit: int
) -> list[Delivery]:
    """At most `limit` deliveries to a webhook, newest first. Raises NotFound for an unknown `after`."""
    listing = Listing(
        table=deliveries, scope=[deliveries.c.project_id == project_id, deliveries.c.webhook_id == webhook_id]
    )
    return [_delivery(row) for row in page(tx, listing, after=after, limit=limit)]


def delete_deliveries_about(tx: Connection, project_id: str, object_id: str) -> None:
    """Forget what was told about something; what still waits stays."""
    ended = (deliveries.c.project_id == project_id, deliveries.c.object_id == object_id, deliveries.c.ended_at > 0)
    tx.execute(delete(deliveries).where(*ended))


def delete_ended_deliveries(tx: Connection, *, before: int) -> int:
    """Forget deliveries that ended before a time; how many."""
    return tx.execute(delete(deliveries).where(deliveries.c.ended_at < before)).rowcount


def _values(webhook: Webhook) -> dict[str, Any]:
    return {**asdict(webhook), "event_types": [one.value for one in webhook.event_types]}


def _webhook(row: Row[Any]) -> Webhook:
    values = row._asdict()
    del values["seq"]
    return Webhook(**{**values, "event_types": tuple(EventType(one) for one in row.event_types)})


def _delivery(row: Row[Any]) -> Delivery:
    values = row._asdict()
    del values["seq"]
    return Delivery(**{**values, "type": EventType(row.type), "state": DeliveryState(row.state)})
