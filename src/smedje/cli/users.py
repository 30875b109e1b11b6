"""`smedje users`: who can sign in to this server at all, and who oneself is.

Knows the accounts' paths; reads passwords from the terminal without showing them, or from standard input.
"""

import sys
from typing import Annotated, Any

import typer

from smedje.cli.output import JsonFlag, print_fields, print_json, print_table, say, when

app = typer.Typer(help="Make accounts to sign in with.", rich_markup_mode=None, no_args_is_help=True)

USERS = "/api/users"
Person = Annotated[str, typer.Argument(metavar="USER", help="E-mail address or id.")]


@app.command()
def create(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="The person's address.")],
    name: Annotated[str | None, typer.Option("--name", help="What to call the person.")] = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="Sign-in through the identity provider alone.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make an account. The password is asked for, or read from standard input."""
    from smedje.cli.client import open_client

    password = None if no_password else _password()
    with open_client() as client:
        made = client.post(USERS, {"email": email, "name": name, "password": password})
    _show(made, as_json=as_json, done="made")


@app.command("list")
def list_users(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100, as_json: JsonFlag = False
) -> None:
    """List every account of the server, newest first."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.page(USERS, limit=limit)
    if as_json:
        print_json(found)
        return
    rows = [(one["email"], one["name"], one["kind"], _ways(one), when(one["last_sign_in_at"])) for one in found["data"]]
    print_table(("USER", "NAME", "KIND", "SIGNS IN BY", "LAST"), rows, empty="Nobody. Next: smedje users create EMAIL")


@app.command()
def password(user: Person, as_json: JsonFlag = False) -> None:
    """Set a new password, which ends the person's sessions."""
    _change(user, {"password": _password()}, as_json=as_json, done="has a new password")


@app.command()
def disable(user: Person, as_json: JsonFlag = False) -> None:
    """End the person's sessions and let their keys do nothing until enabled again."""
    _change(user, {"disabled": True}, as_json=as_json, done="is disabled")


@app.command()
def enable(user: Person, as_json: JsonFlag = False) -> None:
    """Let a disabled person sign in and use their keys again."""
    _change(user, {"disabled": False}, as_json=as_json, done="is enabled")


@app.command()
def me(as_json: JsonFlag = False) -> None:
    """Show whose key this is, its project, and what it may do there."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.get("/api/me")
    if as_json:
        print_json(found)
        return
    roles = [f"{one['role_name']} in {one['project'] or one['hub'] or 'the whole server'}" for one in found["roles"]]
    project = found["project"]
    print_fields(
        {
            "key": found["id"],
            "user": found["email"],
            "project": f"{project['name']} ({project['id']})" if project else None,
            "roles": ", ".join(roles) or None,
            "permissions": ", ".join(found["permissions"]) or None,
        }
    )


def _change(user: str, body: dict[str, Any], *, as_json: bool, done: str) -> None:
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        changed = client.patch(f"{USERS}/{segment(user)}", body)
    _show(changed, as_json=as_json, done=done)


def _show(user: dict[str, Any], *, as_json: bool, done: str) -> None:
    if as_json:
        print_json(user)
    else:
        say(f"{done} {user['email']} ({user['id']})" if done == "made" else f"{user['email']} {done}")


def _ways(user: dict[str, Any]) -> str | None:
    if user["disabled_at"]:
        return "disabled"
    return " and ".join(
        word for word, there in (("password", user["password"]), ("provider", user["provider"])) if there
    )


def _password() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")
