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
def update(
    name: Name,
    model: Annotated[str | None, typer.Option("--model", help="What answers from now on.")] = None,
    canary: Annotated[str | None, typer.Option("--canary", help="A second model for a share of the requests.")] = None,
    percent: Annotated[int | None, typer.Option("--percent", help="The canary's share, 1 to 99; 0 ends it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change what a deployment answers with; the next request sees it."""
    from smedje.cli.client import open_client

    body: dict[str, Any] = {} if model is None else {"model": model}
    if canary is not None or percent is not None:
        share = 10 if percent is None else percent
        body["canary"] = {"percent": share} if canary is None else {"model": canary, "percent": share}
    with open_client() as client:
        _show(client.patch(_path(name), body), as_json=as_json)


@app.command()
def rollback(
    name: Name,
    revision: Annotated[int | None, typer.Option("--revision", help="Default: the model before this one.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Answer again with an earlier model, at once; a canary ends."""
    from smedje.cli.client import open_client

    with open_client() as client:
        _show(client.post(f"{_path(name)}/rollback", {"revision": revision}), as_json=as_json)


@app.command()
def revisions(name: Name, as_json: JsonFlag = False) -> None:
    """List the models that a deployment has answered with."""
    from smedje.cli.client import open_client

    with open_client() as client:
        page = client.get(f"{_path(name)}/revisions")
    if as_json:
        print_json(page)
        return
    rows = [(str(one["revision"]), one["model"], when(one["created_at"])) for one in page["data"]]
    print_table(("REVISION", "MODEL", "SINCE"), rows, empty="No revisions.")


@app.command()
def key(
    name: Name,
    slot: Annotated[str, typer.Argument(metavar="SLOT", help="primary or secondary.")],
    as_json: JsonFlag = False,
) -> None:
    """Make one of a deployment's two keys anew; it asks this deployment and nothing else."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        made = client.post(f"{_path(name)}/keys/{segment(slot)}", {})
    if as_json:
        print_json(made)
        return
    print_fields({"deployment": name, "slot": made["slot"], "secret": made["secret"]})
    say("the secret is shown this once; the slot's old key has ended")


@app.command("test")
def try_once(
    name: Name,
    message: Annotated[str, typer.Option("--message", help="What to ask.")] = "Hello",
    as_json: JsonFlag = False,
) -> None:
    """Ask a deployment once, and say how long it took."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.post(f"{_path(name)}/test", {"message": message})
    if as_json:
        print_json(found)
        return
    print_fields({"answer": found["text"], "tokens": found["completion_tokens"], "seconds": found["seconds"]})


@app.command()
def samples(
    name: Name,
    language: Annotated[str, typer.Option("--language", help="python, javascript, csharp or curl.")] = "python",
    as_json: JsonFlag = False,
) -> None:
    """Print a program that asks a deployment."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.get(f"{_path(name)}/samples")
    if as_json:
        print_json(found)
        return
    languages = [word for word in found if word not in ("object", "name")]
    if language not in languages:
        raise typer.BadParameter(f"there is no sample in {language}; choose from {', '.join(languages)}")
    print(found[language], end="")


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
    canary = deployment.get("canary")
    print_fields(
        {
            "name": deployment["name"],
            "status": deployment["status"],
            "model": deployment["model"],
            "canary": canary and f"{canary['model']} for {canary['percent']} %",
            "revision": deployment.get("revision"),
            "created": when(deployment.get("created_at")),
            "error": deployment.get("error"),
        }
    )
