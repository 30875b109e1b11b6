"""`smedje members`: who has which role in the project and its hub.

Knows the members' paths; knows nothing of what a role allows.
"""

from typing import Annotated

import typer

from smedje.cli.output import JsonFlag, print_json, print_table, say, when

app = typer.Typer(help="Give people roles.", rich_markup_mode=None, no_args_is_help=True)

MEMBERS = "/api/members"
Person = Annotated[str, typer.Argument(metavar="MEMBER", help="E-mail address or id.")]
InHub = Annotated[bool, typer.Option("--hub", help="In the whole hub instead of the project.")]


@app.command()
def add(
    member: Person,
    role: Annotated[
        str,
        typer.Option("--role", help="owner, contributor, ai_developer, deployment_operator, reader, or the hub's own."),
    ],
    hub: InHub = False,
    as_json: JsonFlag = False,
) -> None:
    """Give a person a role, in the stead of the one held there before."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        body = {"role": role, "scope": "hub" if hub else "project"}
        given = client.put(f"{MEMBERS}/{segment(member)}", body)
    if as_json:
        print_json(given)
    else:
        say(f"{given['email']} is {given['role_name']} in the {given['scope']}")


@app.command("list")
def list_members(as_json: JsonFlag = False) -> None:
    """List who has a role in the project or its hub."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.get(MEMBERS)
    if as_json:
        print_json(found)
        return
    rows = [(one["email"], one["role_name"], one["scope"], when(one["since"])) for one in found["data"]]
    print_table(("MEMBER", "ROLE", "IN", "SINCE"), rows, empty="No members. Next: smedje members add EMAIL --role ROLE")


@app.command()
def remove(member: Person, hub: InHub = False, as_json: JsonFlag = False) -> None:
    """Take a person's role back; keys that rest on it stop working at once."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        answer = client.delete(f"{MEMBERS}/{segment(member)}?scope={'hub' if hub else 'project'}")
    if as_json:
        print_json(answer)
    else:
        say(f"removed {member}")
