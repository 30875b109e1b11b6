"""`smedje quotas`: the project's limits.

Knows the quotas' path; knows nothing of what is counted.
"""

from typing import Annotated

import typer

from smedje.cli.output import JsonFlag, print_json, print_table, say

app = typer.Typer(help="Limit what a project may use.", rich_markup_mode=None, no_args_is_help=True)

QUOTAS = "/api/quotas"


@app.command("list")
def list_quotas(as_json: JsonFlag = False) -> None:
    """List the project's limits and what is used of them."""
    from smedje.cli.client import open_client

    with open_client() as client:
        _show(client.get(QUOTAS), as_json=as_json)


@app.command("set")
def set_quota(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as active_jobs or tokens_per_minute.")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="A whole number, or none to take the limit away.")],
    deployment: Annotated[str, typer.Option("--deployment", help="Limit this deployment's rate alone.")] = "",
    warn_at: Annotated[
        int | None, typer.Option("--warn-at", min=1, max=100, help="Warn from this percentage on; 100 for never.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Set a limit, or take it away."""
    from smedje.cli.client import open_client

    number = None if value == "none" else int(value) if value.isdecimal() else value
    with open_client() as client:
        body = {"name": name, "value": number, "deployment": deployment, "warn_percent": warn_at}
        _show(client.put(QUOTAS, body), as_json=as_json)


def _show(found: dict[str, list[dict[str, object]]], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [(one["name"], one["deployment"], one["value"], one["used"], one["left"]) for one in found["data"]]
    print_table(("LIMIT", "DEPLOYMENT", "VALUE", "USED", "LEFT"), rows, empty="No limits.")
    for one in found["data"]:
        if one["warning"]:
            say(f"warning: {one['warning']}")
