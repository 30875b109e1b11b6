"""`smedje webhooks`: who is told when jobs end.

Knows the webhooks' paths; knows nothing of how they are signed or sent.
"""

from typing import Annotated, Any

import typer

from smedje.cli.output import JsonFlag, print_fields, print_json, print_table, when

app = typer.Typer(help="Tell an address when jobs end.", rich_markup_mode=None, no_args_is_help=True)

WEBHOOKS = "/v1/webhook_endpoints"
EVENTS = ("fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled")
Id = Annotated[str, typer.Argument(metavar="ID", help="The webhook's id.")]
Event = Annotated[list[str], typer.Option("--event", help="What to tell; may be repeated. All unless given.")]


@app.command("list")
def list_webhooks(as_json: JsonFlag = False) -> None:
    """List the project's webhooks."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.get(f"{WEBHOOKS}?limit=100")
    if as_json:
        print_json(found)
        return
    rows = [(one["id"], one["name"], one["url"], when(one["disabled_at"])) for one in found["data"]]
    print_table(("ID", "NAME", "URL", "DISABLED"), rows, empty="No webhooks.")


@app.command("create")
def create_webhook(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to send; the server must be allowed to reach it.")],
    name: Annotated[str, typer.Option("--name", help="What to call it.")] = "webhook",
    events: Event = list(EVENTS),  # noqa: B006  # typer only reads it
    as_json: JsonFlag = False,
) -> None:
    """Register an address; prints its signing secret, this once."""
    from smedje.cli.client import open_client

    with open_client() as client:
        _show(client.post(WEBHOOKS, {"name": name, "url": url, "event_types": events}), as_json=as_json)


@app.command("rotate")
def rotate_secret(
    webhook_id: Id,
    keep: Annotated[bool, typer.Option("--keep-old", help="The old secret signs too for 24 hours.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a new signing secret; prints it, this once."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        body = {"keep_old_secret_active_for_24_hours": keep}
        _show(client.post(f"{WEBHOOKS}/{segment(webhook_id)}/rotate_secret", body), as_json=as_json)


@app.command("test")
def send_test(
    webhook_id: Id,
    event: Annotated[str, typer.Option("--event", help="Which event to send.")] = EVENTS[0],
    as_json: JsonFlag = False,
) -> None:
    """Send one event about no real job; prints the status of the answer."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        _show(client.post(f"{WEBHOOKS}/{segment(webhook_id)}/test", {"event_type": event}), as_json=as_json)


@app.command("deliveries")
def list_deliveries(webhook_id: Id, as_json: JsonFlag = False) -> None:
    """List what a webhook was told, newest first."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        found = client.get(f"/api/webhooks/{segment(webhook_id)}/deliveries?limit=100")
    if as_json:
        print_json(found)
        return
    rows = [
        (when(one["created_at"]), one["type"], one["object_id"], one["state"], one["attempts"], _answer(one))
        for one in found["data"]
    ]
    print_table(("AT", "EVENT", "OBJECT", "STATE", "TRIES", "ANSWER"), rows, empty="Nothing was sent.")


@app.command("delete")
def delete_webhook(webhook_id: Id, as_json: JsonFlag = False) -> None:
    """Forget a webhook and what still waits for it."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        _show(client.delete(f"{WEBHOOKS}/{segment(webhook_id)}"), as_json=as_json)


def _answer(delivery: dict[str, Any]) -> object:
    return delivery["status"] or delivery["problem"]


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        print_fields({key: ", ".join(value) if isinstance(value, list) else value for key, value in found.items()})
