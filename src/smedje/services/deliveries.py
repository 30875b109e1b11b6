"""Telling webhooks: each event is a row, written with the change itself, and sent until its receiver has it.

At least once, never lost: a sender takes rows for half a minute, so one that is killed leaves them to the next.
Receivers know a repeated event by its webhook-id. Knows when to try again and when to give up; refuses to know anything
about a job but its id, and what receivers answer beyond the status.
"""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sqlalchemy import Connection

from smedje.domain.ids import EVENT_SENT, new_id
from smedje.domain.projects import Project
from smedje.domain.webhooks import Delivery, DeliveryState, EventType, Webhook
from smedje.errors import SmedjeError
from smedje.services import outbound
from smedje.services.audit import record_in
from smedje.services.context import Context
from smedje.services.webhooks import get_webhook, signatures
from smedje.store import webhooks as store

log = logging.getLogger("smedje.deliveries")
# After each failed attempt; together a little over three days.
WAITS = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 43200, 57600, 86400)
ANSWER_SECONDS = 15.0
# Longer than an attempt can take.
HOLD_SECONDS = 30
DISABLE_AFTER_SECONDS = 3 * 24 * 3600
AT_ONCE = 8
GONE = 410
TEST_OBJECT = "ftjob-test"


def announce(ctx: Context, tx: Connection, event: EventType, project_id: str, object_id: str) -> None:
    """Queue an event for every webhook that wants it, in the transaction that makes it true."""
    now = ctx.seconds()
    for webhook in store.active_webhooks(tx, project_id):
        if event in webhook.event_types:
            store.insert_delivery(tx, _delivery(webhook, event, object_id, now))


def send_test(ctx: Context, project: Project, webhook_id: str, event: EventType) -> int:
    """Send one event about a job that is not there, now, and return the answer's status.

    Raises NotFound, and as `outbound.post` when there is no answer.
    """
    webhook, now = get_webhook(ctx, project, webhook_id), ctx.seconds()
    delivery = _delivery(webhook, event, TEST_OBJECT, now)
    status, problem = None, None
    try:
        status = _post(ctx, delivery, webhook)
        return status
    except SmedjeError as error:
        problem = error.code
        raise
    finally:
        good = status is not None and 200 <= status < 300
        ended = replace(
            delivery,
            state=DeliveryState.DELIVERED if good else DeliveryState.FAILED,
            attempts=1,
            status=status,
            problem=problem,
            ended_at=ctx.seconds(),
        )
        with ctx.database.transaction() as tx:
            store.insert_delivery(tx, ended)
            record_in(ctx, tx, "webhook.tested", project.id, webhook.id)


def deliver_due(ctx: Context, pool: ThreadPoolExecutor) -> int:
    """Send what is due, some at once, each with its own fate; how many were tried."""
    with ctx.database.transaction() as tx:
        due = store.take_due(tx, now=ctx.seconds(), hold=HOLD_SECONDS, limit=AT_ONCE)
    list(pool.map(lambda one: _attempt(ctx, *one), due))
    return len(due)


class Courier:
    """Owns the threads that send. One loop a server; several servers share the rows."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook")

    def run_forever(self, stop: threading.Event, *, interval: float = 1.0) -> None:
        """Send what is due until `stop` is set."""
        while not stop.is_set():
            tried = 0
            try:
                tried = deliver_due(self._ctx, self._pool)
            except Exception:
                # The rows stay as they are, so the next pass tries again.
                log.exception("sending to webhooks failed")
            if tried < AT_ONCE:
                stop.wait(interval)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _attempt(ctx: Context, delivery: Delivery, webhook: Webhook) -> None:
    status, problem = None, None
    try:
        status = _post(ctx, delivery, webhook)
    except SmedjeError as error:
        problem = error.code
    now = ctx.seconds()
    tried = replace(delivery, attempts=delivery.attempts + 1, status=status, problem=problem)
    with ctx.database.transaction() as tx:
        current = store.lock_webhook(tx, webhook.id)
        if current is None:
            return
        if status is not None and 200 <= status < 300:
            store.save_delivery(tx, replace(tried, state=DeliveryState.DELIVERED, ended_at=now))
            if current.failing_since is not None:
                store.save_webhook(tx, replace(current, failing_since=None))
            return
        _after_failure(ctx, tx, tried, current)


def _after_failure(ctx: Context, tx: Connection, tried: Delivery, webhook: Webhook) -> None:
    """Try again later, or give up: on this event after the last attempt, on the webhook after three days of failing
    or when its receiver says that it is gone."""
    now = ctx.seconds()
    since = webhook.failing_since or now
    if tried.attempts > len(WAITS):
        store.save_delivery(tx, replace(tried, state=DeliveryState.FAILED, ended_at=now))
    else:
        store.save_delivery(tx, replace(tried, next_at=now + WAITS[tried.attempts - 1]))
    if tried.status == GONE or now - since >= DISABLE_AFTER_SECONDS:
        store.save_webhook(tx, replace(webhook, failing_since=since, disabled_at=now))
        store.end_deliveries(tx, webhook.id, now=now, problem="webhook_disabled")
        record_in(ctx, tx, "webhook.disabled", webhook.project_id, webhook.id)
    elif webhook.failing_since is None:
        store.save_webhook(tx, replace(webhook, failing_since=since))


def _post(ctx: Context, delivery: Delivery, webhook: Webhook) -> int:
    body = json.dumps(
        {
            "id": delivery.id,
            "object": "event",
            "created_at": delivery.created_at,
            "type": delivery.type.value,
            "data": {"id": delivery.object_id},
        }
    ).encode()
    timestamp = ctx.seconds()
    headers = {
        "content-type": "application/json",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signatures(ctx, webhook, delivery.id, timestamp, body),
    }
    return outbound.post(ctx.outbound, webhook.url, body, headers, seconds=ANSWER_SECONDS)


def _delivery(webhook: Webhook, event: EventType, object_id: str, now: int) -> Delivery:
    return Delivery(
        id=new_id(EVENT_SENT),
        project_id=webhook.project_id,
        webhook_id=webhook.id,
        type=event,
        object_id=object_id,
        created_at=now,
        state=DeliveryState.PENDING,
        attempts=0,
        next_at=now,
    )
