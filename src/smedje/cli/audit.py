"""`smedje audit`: who did what to which object, and whether the log is whole.

Knows the audit log's paths; knows nothing of how its chain is made.
"""

from typing import Annotated

import typer

from smedje.cli import exits
from smedje.cli.output import JsonFlag, print_json, print_table, say, when

app = typer.Typer(help="See who did what, and check the log.", rich_markup_mode=None, no_args_is_help=True)

AUDIT = "/api/audit"


@app.command("list")
def list_audit(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 50, as_json: JsonFlag = False
) -> None:
    """List the project's entries, newest first."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.page(AUDIT, limit=limit)
    if as_json:
        print_json(found)
        return
    rows = [(when(one["at"]), one["action"], one["object_id"], one["key_id"], one["address"]) for one in found["data"]]
    print_table(("AT", "ACTION", "OBJECT", "KEY", "FROM"), rows, empty="No entries.")


@app.command()
def verify(as_json: JsonFlag = False) -> None:
    """Follow the log's chain from its first entry. Exit code 1 when it is broken."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.get(f"{AUDIT}/verify")
    if as_json:
        print_json(found)
    elif found["sound"]:
        say(f"sound: {found['entries']} entries, newest hash {found['head']}")
    else:
        say(f"broken at {found['broken_at']}, after {found['entries']} sound entries")
    if not found["sound"]:
        raise typer.Exit(exits.FAILED)
