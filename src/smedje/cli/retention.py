"""`smedje retention`: how long a project keeps what.

Knows the paths; knows nothing of what is removed or how.
"""

from typing import Annotated, Any

import typer

from smedje.cli.output import JsonFlag, print_fields, print_json, print_table, say, size, when

app = typer.Typer(help="Keep things for so many days.", rich_markup_mode=None, no_args_is_help=True)

RETENTION = "/api/retention"
Files = Annotated[int | None, typer.Option("--files", min=0, help="Days for files; 0 for ever.")]
Checkpoints = Annotated[int | None, typer.Option("--checkpoints", min=0, help="Days for checkpoints that no model is.")]
Events = Annotated[int | None, typer.Option("--events", min=0, help="Days for jobs' stories and logs.")]


@app.command("show")
def show_retention(as_json: JsonFlag = False) -> None:
    """Show the project's rules, in days; 0 is for ever."""
    from smedje.cli.client import open_client

    with open_client() as client:
        _rules(client.get(RETENTION), as_json=as_json)


@app.command("set")
def set_retention(
    files: Files = None, checkpoints: Checkpoints = None, events: Events = None, as_json: JsonFlag = False
) -> None:
    """Change rules; what is not named stays."""
    from smedje.cli.client import open_client

    with open_client() as client:
        _rules(client.put(RETENTION, _given(files, checkpoints, events)), as_json=as_json)


@app.command("preview")
def preview_retention(
    files: Files = None, checkpoints: Checkpoints = None, events: Events = None, as_json: JsonFlag = False
) -> None:
    """Show what the rules, or these days in their stead, would remove now."""
    from smedje.cli.client import open_client

    query = "&".join(f"{name}={days}" for name, days in _given(files, checkpoints, events).items())
    with open_client() as client:
        _parts(client.get(f"{RETENTION}/preview?{query}"), as_json=as_json)


@app.command("apply")
def apply_retention(as_json: JsonFlag = False) -> None:
    """Follow the rules now instead of within the hour."""
    from smedje.cli.client import open_client

    with open_client() as client:
        _parts(client.post(f"{RETENTION}/apply", {}), as_json=as_json)


def _given(files: int | None, checkpoints: int | None, events: int | None) -> dict[str, int]:
    named = {"files": files, "checkpoints": checkpoints, "events": events}
    return {name: days for name, days in named.items() if days is not None}


def _rules(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        print_fields({name: days for name, days in found.items() if name != "object"})


def _parts(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [(one["kind"], one["id"], size(one["bytes"]), when(one["created_at"])) for one in found["data"]]
    print_table(("WHAT", "ID", "SIZE", "FROM"), rows, empty="Nothing.")
    say(f"{size(found['bytes'])} in all; {found['in_use']} more are old enough and in use")
