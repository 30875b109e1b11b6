"""`smedje hubs`: what holds projects.

Knows the hubs' paths; knows nothing of who may make one.
"""

from typing import Annotated

import typer

from smedje.cli.output import JsonFlag, print_fields, print_json, print_table, say, when

app = typer.Typer(help="Make hubs, which hold projects.", rich_markup_mode=None, no_args_is_help=True)

HUBS = "/api/hubs"
Name = Annotated[str, typer.Argument(metavar="HUB", help="The hub's name or id.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="1 to 64 letters, digits, '_' or '-'.")],
    description: Annotated[str, typer.Option("--description", help="What it is for.")] = "",
    location: Annotated[str | None, typer.Option("--location", help="Where its jobs run.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="May be repeated.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a hub. Needs a key for the whole server."""
    from smedje.cli.client import open_client

    tags = dict(pair.partition("=")[::2] for pair in tag or ())
    body = {"name": name, "description": description, "tags": tags}
    if location is not None:
        body["location"] = location
    with open_client() as client:
        _show(client.post(HUBS, body), as_json=as_json)


@app.command("list")
def list_hubs(as_json: JsonFlag = False) -> None:
    """List the hubs in which the key has a role."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.get(HUBS)
    if as_json:
        print_json(found)
        return
    rows = [(hub["name"], hub["location"], hub["id"], when(hub["created_at"])) for hub in found["data"]]
    print_table(("NAME", "LOCATION", "ID", "CREATED"), rows, empty="No hubs. Next: smedje hubs create NAME")


@app.command()
def get(name: Name, as_json: JsonFlag = False) -> None:
    """Show one hub."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        _show(client.get(f"{HUBS}/{segment(name)}"), as_json=as_json)


@app.command()
def delete(name: Name, as_json: JsonFlag = False) -> None:
    """Delete a hub that holds no projects."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        answer = client.delete(f"{HUBS}/{segment(name)}")
    if as_json:
        print_json(answer)
    else:
        say(f"deleted {name}")


def _show(hub: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(hub)
        return
    shown = ("name", "id", "description", "location", "subscription", "resource_group", "ai_services", "search", "tags")
    print_fields({**{field: hub[field] for field in shown}, "created": when(hub["created_at"])})
