"""Webhooks: registering addresses that are told when jobs end, their secrets, and what each was told.

A secret is nowhere: it follows from the server's own key in the state folder, the webhook and the count of its
rotations, so that nothing that signs can leak from the database. Knows rules; sending is `deliveries`' work.
"""

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from smedje.domain.ids import WEBHOOK, new_id
from smedje.domain.projects import Principal, Project
from smedje.domain.webhooks import Delivery, EventType, Webhook
from smedje.errors import InvalidRequest, LimitExceeded, NotFound
from smedje.services.audit import record_in
from smedje.services.context import Context
from smedje.services.hubs import clean_text
from smedje.services.outbound import check_address
from smedje.store import webhooks as store

KEY_FILE = "signing_key"
OLD_SECRET_SECONDS = 24 * 3600
MOST_WEBHOOKS = 20
LONGEST_NAME = 100


@dataclass(frozen=True, kw_only=True)
class WebhookForm:
    """What a caller says about a webhook. None leaves a field as it is."""

    name: str | None = None
    url: str | None = None
    event_types: Sequence[EventType] | None = None


def create_webhook(ctx: Context, caller: Principal, form: WebhookForm) -> tuple[Webhook, str]:
    """A new webhook and its signing secret, which only a rotation shows again.

    Raises InvalidRequest for a bad name or no event types, and for an address that the server does not reach;
    LimitExceeded beyond 20 in a project.
    """
    now = ctx.seconds()
    blank = Webhook(
        id=new_id(WEBHOOK),
        project_id=caller.project.id,
        name="",
        url="",
        event_types=(),
        secret_version=1,
        created_at=now,
        updated_at=now,
    )
    webhook = _filled(ctx, blank, form)
    with ctx.database.transaction() as tx:
        if len(store.list_webhooks(tx, caller.project.id, limit=MOST_WEBHOOKS)) >= MOST_WEBHOOKS:
            raise LimitExceeded(
                f"A project has at most {MOST_WEBHOOKS} webhooks. Delete one first.", code="quota_exceeded"
            )
        store.insert_webhook(tx, webhook)
        record_in(ctx, tx, "webhook.created", caller.project.id, webhook.id)
    return webhook, signing_secret(ctx, webhook, webhook.secret_version)


def get_webhook(ctx: Context, project: Project, webhook_id: str) -> Webhook:
    """Raises NotFound when this project has no such webhook."""
    with ctx.database.transaction() as tx:
        found = store.get_webhook(tx, project.id, webhook_id)
    if found is None:
        raise NotFound(f"There is no webhook {webhook_id[:100]!r}.", code="webhook_not_found", param="id")
    return found


def list_webhooks(ctx: Context, project: Project, *, after: str | None, limit: int) -> list[Webhook]:
    """At most `limit` webhooks, newest first. Raises NotFound for an unknown `after`."""
    with ctx.database.transaction() as tx:
        return store.list_webhooks(tx, project.id, after=after, limit=limit)


def update_webhook(ctx: Context, project: Project, webhook_id: str, form: WebhookForm) -> Webhook:
    """The webhook with what the form says; one that was disabled is tried again."""
    webhook = _filled(ctx, get_webhook(ctx, project, webhook_id), form)
    changed = replace(webhook, updated_at=ctx.seconds(), failing_since=None, disabled_at=None)
    with ctx.database.transaction() as tx:
        store.save_webhook(tx, changed)
        record_in(ctx, tx, "webhook.updated", project.id, webhook.id)
    return changed


def delete_webhook(ctx: Context, project: Project, webhook_id: str) -> None:
    """Forget a webhook, its log, and what still waits for it. Raises NotFound."""
    webhook = get_webhook(ctx, project, webhook_id)
    with ctx.database.transaction() as tx:
        store.delete_webhook(tx, project.id, webhook.id)
        record_in(ctx, tx, "webhook.deleted", project.id, webhook.id)


def rotate_secret(ctx: Context, project: Project, webhook_id: str, *, keep_old: bool) -> tuple[Webhook, str]:
    """A new secret; with keep_old the one before signs too for 24 hours, so that no delivery is refused meanwhile."""
    webhook, now = get_webhook(ctx, project, webhook_id), ctx.seconds()
    changed = replace(
        webhook,
        secret_version=webhook.secret_version + 1,
        old_secret_until=now + OLD_SECRET_SECONDS if keep_old else None,
        updated_at=now,
    )
    with ctx.database.transaction() as tx:
        store.save_webhook(tx, changed)
        record_in(ctx, tx, "webhook.rotated", project.id, webhook.id)
    return changed, signing_secret(ctx, changed, changed.secret_version)


def list_deliveries(
    ctx: Context, project: Project, webhook_id: str, *, after: str | None, limit: int
) -> list[Delivery]:
    """At most `limit` of a webhook's deliveries, newest first. Raises NotFound."""
    webhook = get_webhook(ctx, project, webhook_id)
    with ctx.database.transaction() as tx:
        return store.list_deliveries(tx, project.id, webhook.id, after=after, limit=limit)


def signing_secret(ctx: Context, webhook: Webhook, version: int) -> str:
    """`whsec_` and 32 bytes in Base64, as Standard Webhooks has it."""
    derived = hmac.new(_server_key(ctx), f"webhook/{webhook.id}/{version}".encode(), hashlib.sha256).digest()
    return "whsec_" + base64.b64encode(derived).decode()


def secret_hint(ctx: Context, webhook: Webhook) -> str:
    """The end of the secret, by which a person can recognise it."""
    return "whsec_…" + signing_secret(ctx, webhook, webhook.secret_version)[-5:-1]


def signatures(ctx: Context, webhook: Webhook, message_id: str, timestamp: int, body: bytes) -> str:
    """The header webhook-signature (Standard Webhooks): one signature for each secret that is valid now."""
    versions = [webhook.secret_version]
    if webhook.old_secret_until is not None and webhook.old_secret_until > timestamp:
        versions.append(webhook.secret_version - 1)
    signed = f"{message_id}.{timestamp}.".encode() + body
    found = []
    for version in versions:
        key = base64.b64decode(signing_secret(ctx, webhook, version).removeprefix("whsec_"))
        found.append("v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode())
    return " ".join(found)


def _filled(ctx: Context, webhook: Webhook, form: WebhookForm) -> Webhook:
    name = webhook.name if form.name is None else clean_text(form.name, "name").strip()
    types = webhook.event_types if form.event_types is None else tuple(dict.fromkeys(form.event_types))
    if not name or len(name) > LONGEST_NAME:
        raise InvalidRequest(f"name needs 1 to {LONGEST_NAME} characters.", code="invalid_value", param="name")
    if not types:
        raise InvalidRequest("event_types names nothing to be told.", code="invalid_value", param="event_types")
    if form.url is not None:
        check_address(ctx.outbound, form.url)
    return replace(webhook, name=name, url=webhook.url if form.url is None else form.url, event_types=types)


def _server_key(ctx: Context) -> bytes:
    """32 random bytes in the state folder, made when first needed and readable by this user alone."""
    file = ctx.home / KEY_FILE
    if not file.exists():
        draft = file.with_name(f"{KEY_FILE}.{secrets.token_hex(8)}")
        number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "wb") as out:
            out.write(secrets.token_bytes(32))
            out.flush()
            os.fsync(out.fileno())
        # Of several processes that start at once, the first one's key stays.
        with suppress(FileExistsError):
            os.link(draft, file)
        draft.unlink()
    return file.read_bytes()
