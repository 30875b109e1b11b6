"""`smedje keys`: make, rotate and revoke API keys.

Knows the keys' paths; shows a secret once, on standard output, and keeps it nowhere.
"""

from typing import Annotated

import typer

from smedje.cli.output import JsonFlag, note, print_json, print_table, say, when

app = typer.Typer(help="Make, rotate and revoke API keys.", rich_markup_mode=None, no_args_is_help=True)

KEYS = "/api/keys"
Id = Annotated[str, typer.Argument(metavar="ID", help="The key's id.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    role: Annotated[str | None, typer.Option("--role", help="Its role; the member's own when left out.")] = None,
    member: Annotated[str | None, typer.Option("--member", help="Whose key it is: e-mail address or id.")] = None,
    permission: Annotated[
        list[str] | None, typer.Option("--permission", help="Only these of the role's. May be repeated.")
    ] = None,
    days: Annotated[int | None, typer.Option("--days", min=1, help="Ends after so many days.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key and print its secret, which nothing can show again."""
    from smedje.cli.client import open_client

    body = {
        "name": name,
        "role": role,
        "member": member,
        "permissions": permission or None,
        "expires_in": None if days is None else days * 86400,
    }
    with open_client() as client:
        _show_secret(client.post(KEYS, body), as_json=as_json)


@app.command("list")
def list_keys(as_json: JsonFlag = False) -> None:
    """List the project's keys."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.get(KEYS)
    if as_json:
        print_json(found)
        return
    rows = [
        (key["id"], key["name"], key["key"], key["role_name"], when(key["last_used_at"]), _end(key))
        for key in found["data"]
    ]
    print_table(("ID", "NAME", "KEY", "ROLE", "LAST USED", "ENDS"), rows, empty="No keys.")


@app.command()
def rotate(
    key: Id,
    grace_seconds: Annotated[
        int, typer.Option("--grace-seconds", min=0, help="For how long the old secret works on.")
    ] = 86400,
    as_json: JsonFlag = False,
) -> None:
    """Print a new secret; the old one works for the grace period."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        _show_secret(client.post(f"{KEYS}/{segment(key)}/rotate", {"grace_seconds": grace_seconds}), as_json=as_json)


@app.command()
def revoke(key: Id, as_json: JsonFlag = False) -> None:
    """End a key at once."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        answer = client.delete(f"{KEYS}/{segment(key)}")
    if as_json:
        print_json(answer)
    else:
        say(f"revoked {key}")


def _show_secret(key: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(key)
        return
    say(str(key["secret"]))
    note(f"{key['id']}: {key['role_name']}. This is the only time that the secret is shown.")


def _end(key: dict[str, object]) -> str | None:
    return f"revoked {when(key['revoked_at'])}" if key["revoked_at"] else when(key["expires_at"])
