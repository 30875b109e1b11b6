"""`smedje erase`: a file, or what holds one row, with everything trained on it.

Knows the paths; knows nothing of what hangs on what.
"""

from typing import Annotated, Any

import typer

from smedje.cli.output import JsonFlag, print_fields, print_json, print_table, say, size, when

app = typer.Typer(help="Erase data and everything trained on it.", rich_markup_mode=None, no_args_is_help=True)

ERASURES = "/api/erasures"
File = Annotated[str, typer.Argument(metavar="FILE", help="The file's id.")]
Row = Annotated[int | None, typer.Option("--row", min=1, help="A line of it: then every file that holds it goes.")]


@app.command("preview")
def preview_erasure(file: File, row: Row = None, as_json: JsonFlag = False) -> None:
    """Show what would go, and what must end first. Changes nothing."""
    from smedje.cli.client import open_client

    with open_client() as client:
        plan = client.get(_preview(file, row))
    print_json(plan) if as_json else _show_plan(plan)


@app.command("run")
def run_erasure(
    file: File,
    row: Row = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Erase, and print the certificate."""
    import sys

    from smedje.cli.client import open_client

    with open_client() as client:
        plan = client.get(_preview(file, row))
        if not yes:
            if not sys.stdin.isatty():
                raise typer.BadParameter("this cannot be undone; pass it to go on unasked.", param_hint="--yes")
            _show_plan(plan)
            typer.confirm("Erase all of this for good?", abort=True)
        body = {"file": file, "plan": plan["plan"], **({} if row is None else {"row": row})}
        _show(client.post(ERASURES, body), as_json=as_json)


@app.command("list")
def list_erasures(as_json: JsonFlag = False) -> None:
    """List the project's erasures, newest first."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.get(f"{ERASURES}?limit=100")
    if as_json:
        print_json(found)
        return
    rows = [
        (one["id"], when(one["created_at"]), one["state"], one["certificate"]["counts"]["files"], one["sha256"])
        for one in found["data"]
    ]
    print_table(("ID", "AT", "STATE", "FILES", "SHA-256"), rows, empty="Nothing was erased.")


@app.command("certificate")
def get_certificate(
    erasure_id: Annotated[str, typer.Argument(metavar="ID", help="The erasure's id.")], as_json: JsonFlag = False
) -> None:
    """Print an erasure's certificate; its SHA-256 stands in the audit log."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        _show(client.get(f"{ERASURES}/{segment(erasure_id)}"), as_json=as_json)


def _preview(file: str, row: int | None) -> str:
    from smedje.cli.client import segment

    return f"{ERASURES}/preview?file={segment(file)}" + ("" if row is None else f"&row={row}")


def _show_plan(plan: dict[str, Any]) -> None:
    for kind in ("files", "jobs", "checkpoints", "models"):
        for name in plan[kind]:
            say(f"{kind.removesuffix('s'):<11} {name}")
    say(f"{size(plan['bytes'])} in all")
    for reason in plan["blocked_by"]:
        say(f"first: {reason}")


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_fields({name: found[name] for name in ("id", "state", "sha256")})
    say(found["certificate_text"])
