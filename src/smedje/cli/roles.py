"""`smedje roles`: what each role allows, and roles of the hub's own.

Knows the roles' paths; what a permission means stands in docs/governance.md.
"""

from typing import Annotated

import typer

from smedje.cli.output import JsonFlag, print_json, print_table, say

app = typer.Typer(help="See roles and make your own.", rich_markup_mode=None, no_args_is_help=True)

ROLES = "/api/roles"
Name = Annotated[str, typer.Argument(metavar="NAME", help="The role's name.")]
Allowed = Annotated[list[str], typer.Option("--permission", help="What it allows, such as jobs.write. Repeatable.")]


@app.command()
def create(
    name: Name,
    permission: Allowed,
    description: Annotated[str, typer.Option("--description", help="What it is for.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Make a role of the hub's own; it cannot allow what you may not do."""
    from smedje.cli.client import open_client

    with open_client() as client:
        made = client.post(ROLES, {"name": name, "permissions": permission, "description": description})
    if as_json:
        print_json(made)
    else:
        say(f"made {made['name']} ({made['id']})")


@app.command()
def update(name: Name, permission: Allowed, as_json: JsonFlag = False) -> None:
    """Let one of the hub's own roles allow something else, for everyone who has it."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        changed = client.patch(f"{ROLES}/{segment(name)}", {"permissions": permission})
    if as_json:
        print_json(changed)
    else:
        say(f"{changed['name']} allows {', '.join(changed['permissions'])}")


@app.command("list")
def list_roles(as_json: JsonFlag = False) -> None:
    """List the built-in roles and the hub's own."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.get(ROLES)
    if as_json:
        print_json(found)
        return
    rows = [
        (one["name"], "built in" if one["built_in"] else "own", " ".join(one["permissions"])) for one in found["data"]
    ]
    print_table(("ROLE", "", "ALLOWS"), rows, empty="No roles.")


@app.command()
def delete(name: Name, as_json: JsonFlag = False) -> None:
    """Delete one of the hub's own roles, which nobody may have."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        answer = client.delete(f"{ROLES}/{segment(name)}")
    if as_json:
        print_json(answer)
    else:
        say(f"deleted {name}")
