"""`smedje deployments`: give a model a name under which it answers.

Knows the deployments' paths; knows nothing of engines.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smedje.cli import exits
from smedje.cli.output import JsonFlag, print_fields, print_json, print_table, say, when
from smedje.errors import Unavailable

if TYPE_CHECKING:
    from smedje.cli.client import Client

app = typer.Typer(help="Deploy models under names of your own.", rich_markup_mode=None, no_args_is_help=True)

DEPLOYMENTS = "/api/deployments"
Name = Annotated[str, typer.Argument(metavar="NAME", help="The deployment's name.")]
WAIT_SECONDS = 600


@app.command()
def create(
    name: Name,
    model: Annotated[str, typer.Option("--model", help="Base model, fine-tuned model or checkpoint to serve.")],
    as_json: JsonFlag = False,
) -> None:
    """Deploy a model and wait until it is ready. Exit code 1 when it fails to start."""
    from smedje.cli.client import open_client

    with open_client() as client:
        deployment = deploy(client, name, model)
    _show(deployment, as_json=as_json)
    if deployment["status"] == "failed":
        raise typer.Exit(exits.FAILED)
    if not as_json:
        say(f'next: smedje chat --model {name} "..."')


@app.command("list")
def list_deployments(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100, as_json: JsonFlag = False
) -> None:
    """List deployments."""
    from smedje.cli.client import open_client

    with open_client() as client:
        page = client.page(DEPLOYMENTS, limit=limit)
    if as_json:
        print_json(page)
        return
    rows = [(d["name"], d["status"], d["model"], when(d.get("created_at"))) for d in page["data"]]
    print_table(("NAME", "STATUS", "MODEL", "CREATED"), rows, empty="No deployments. Next: smedje deployments create")


@app.command()
def get(name: Name, as_json: JsonFlag = False) -> None:
    """Show one deployment."""
    from smedje.cli.client import open_client

    with open_client() as client:
        _show(client.get(_path(name)), as_json=as_json)


@app.command()
def delete(name: Name, as_json: JsonFlag = False) -> None:
    """Delete a deployment; its model stays."""
    from smedje.cli.client import open_client

    with open_client() as client:
        answer = client.delete(_path(name))
    if as_json:
        print_json(answer)
    else:
        say(f"deleted {name}")


def deploy(client: "Client", name: str, model: str) -> dict[str, Any]:
    """Create a deployment and wait until it is ready or has failed; the deployment.

    Raises Unavailable when it takes longer than ten minutes.
    """
    deployment = client.post(DEPLOYMENTS, {"name": name, "model": model})
    deadline = time.monotonic() + WAIT_SECONDS
    while deployment["status"] == "creating":
        if time.monotonic() > deadline:
            raise Unavailable(f"The deployment {name} is still not ready.", code="server_timeout")
        time.sleep(0.2)
        deployment = client.get(_path(name))
    return deployment


def _path(name: str) -> str:
    from smedje.cli.client import segment

    return f"{DEPLOYMENTS}/{segment(name)}"


def _show(deployment: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(deployment)
        return
    print_fields(
        {
            "name": deployment["name"],
            "status": deployment["status"],
            "model": deployment["model"],
            "created": when(deployment.get("created_at")),
            "error": deployment.get("error"),
        }
    )
