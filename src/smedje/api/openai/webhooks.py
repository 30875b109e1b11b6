"""Webhooks on the wire, in the shapes of OpenAI's `webhook_endpoints`; and, under /api, what each was told."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from smedje.api.auth import CanReadWebhooks, CanWriteWebhooks
from smedje.api.bodies import Body
from smedje.api.paging import Page, page, refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.webhooks import Delivery, EventType, Webhook
from smedje.services import webhooks as service
from smedje.services.context import Context
from smedje.services.deliveries import send_test

PATH = "/v1/webhook_endpoints"
LIST_QUERY = frozenset({"after", "limit"})

router = APIRouter(tags=["webhooks"])

Name = Annotated[str, Field(max_length=256)]
Url = Annotated[str, Field(max_length=4096)]


class WebhookBody(Body):
    """A new webhook: what to call it, where it is, and what it is told."""

    name: Name
    url: Url
    event_types: list[EventType]


class WebhookUpdate(Body):
    """A webhook's change; what is left out stays. Any change has a disabled webhook tried again."""

    name: Name | None = None
    url: Url | None = None
    event_types: list[EventType] | None = None


class RotateBody(Body):
    """keep_old_secret_active_for_24_hours: whether the secret before signs too for a day."""

    keep_old_secret_active_for_24_hours: bool = False


class TestBody(Body):
    """Which event to send."""

    event_type: EventType


class WebhookObject(BaseModel):
    """A webhook. failing_since, disabled_at: ours beyond OpenAI's fields."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    created_at: int
    updated_at: int
    failing_since: int | None
    disabled_at: int | None


class NewWebhookObject(WebhookObject):
    """A webhook with its secret, after making it or rotating the secret: nothing else shows it."""

    signing_secret: str


class WebhookDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: bool = True


class TestObject(BaseModel):
    """What the receiver answered."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class EventTypeObject(BaseModel):
    """An event that a webhook can be told."""

    object: Literal["webhook_event_type"] = "webhook_event_type"
    id: str


class EventTypeList(BaseModel):
    """All of them; never paged."""

    object: Literal["list"] = "list"
    data: list[EventTypeObject]


class DeliveryObject(BaseModel):
    """One event and what came of telling it. problem: an error code where there was no answer."""

    id: str
    object: Literal["webhook.delivery"] = "webhook.delivery"
    type: str
    object_id: str
    created_at: int
    state: str
    attempts: int
    status: int | None
    problem: str | None
    next_at: int | None
    ended_at: int | None


def to_object(ctx: Context, webhook: Webhook) -> WebhookObject:
    """The wire form of a webhook."""
    return WebhookObject(
        id=webhook.id,
        name=webhook.name,
        url=webhook.url,
        event_types=[one.value for one in webhook.event_types],
        signing_secret_hint=service.secret_hint(ctx, webhook),
        created_at=webhook.created_at,
        updated_at=webhook.updated_at,
        failing_since=webhook.failing_since,
        disabled_at=webhook.disabled_at,
    )


def to_new_object(ctx: Context, webhook: Webhook, secret: str) -> NewWebhookObject:
    """The wire form of a webhook with its secret."""
    return NewWebhookObject(**to_object(ctx, webhook).model_dump(), signing_secret=secret)


def to_delivery(one: Delivery) -> DeliveryObject:
    """The wire form of a delivery."""
    return DeliveryObject(
        id=one.id,
        type=one.type.value,
        object_id=one.object_id,
        created_at=one.created_at,
        state=one.state.value,
        attempts=one.attempts,
        status=one.status,
        problem=one.problem,
        next_at=one.next_at if one.ended_at is None else None,
        ended_at=one.ended_at,
    )


@router.post(PATH)
def create_webhook(caller: CanWriteWebhooks, ctx: Using, body: WebhookBody) -> NewWebhookObject:
    """Register an address. Its signing secret is in this answer alone."""
    form = service.WebhookForm(name=body.name, url=body.url, event_types=body.event_types)
    return to_new_object(ctx, *service.create_webhook(ctx, caller, form))


@router.get(PATH)
def list_webhooks(
    caller: CanReadWebhooks,
    ctx: Using,
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Page[WebhookObject]:
    """The project's webhooks, newest first."""
    refuse_unknown_query(request, LIST_QUERY)
    found = service.list_webhooks(ctx, caller.project, after=after, limit=limit + 1)
    return page(found, limit, lambda one: to_object(ctx, one), lambda one: one.id)


@router.get("/v1/webhook_event_types")
def list_event_types(caller: CanReadWebhooks, request: Request) -> EventTypeList:
    """What a webhook can be told."""
    refuse_unknown_query(request, frozenset())
    return EventTypeList(data=[EventTypeObject(id=one.value) for one in EventType])


@router.get(PATH + "/{webhook_id}")
def get_webhook(caller: CanReadWebhooks, ctx: Using, webhook_id: str) -> WebhookObject:
    """One webhook."""
    return to_object(ctx, service.get_webhook(ctx, caller.project, webhook_id))


@router.post(PATH + "/{webhook_id}")
def update_webhook(caller: CanWriteWebhooks, ctx: Using, webhook_id: str, body: WebhookUpdate) -> WebhookObject:
    """Change a webhook."""
    form = service.WebhookForm(name=body.name, url=body.url, event_types=body.event_types)
    return to_object(ctx, service.update_webhook(ctx, caller.project, webhook_id, form))


@router.delete(PATH + "/{webhook_id}")
def delete_webhook(caller: CanWriteWebhooks, ctx: Using, webhook_id: str) -> WebhookDeleted:
    """Forget a webhook and what still waits for it."""
    service.delete_webhook(ctx, caller.project, webhook_id)
    return WebhookDeleted(id=webhook_id)


@router.post(PATH + "/{webhook_id}/rotate_secret")
def rotate_secret(caller: CanWriteWebhooks, ctx: Using, webhook_id: str, body: RotateBody) -> NewWebhookObject:
    """A new signing secret."""
    keep = body.keep_old_secret_active_for_24_hours
    return to_new_object(ctx, *service.rotate_secret(ctx, caller.project, webhook_id, keep_old=keep))


@router.post(PATH + "/{webhook_id}/test")
def send_test_event(caller: CanWriteWebhooks, ctx: Using, webhook_id: str, body: TestBody) -> TestObject:
    """Send one event about no real job, and tell the status of the answer."""
    status = send_test(ctx, caller.project, webhook_id, body.event_type)
    return TestObject(webhook_endpoint_id=webhook_id, event_type=body.event_type.value, status_code=status)


@router.get("/api/webhooks/{webhook_id}/deliveries")
def list_deliveries(
    caller: CanReadWebhooks,
    ctx: Using,
    request: Request,
    webhook_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Page[DeliveryObject]:
    """What a webhook was told, newest first."""
    refuse_unknown_query(request, LIST_QUERY)
    found = service.list_deliveries(ctx, caller.project, webhook_id, after=after, limit=limit + 1)
    return page(found, limit, to_delivery, lambda one: one.id)
