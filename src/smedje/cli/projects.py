"""`smedje projects`: what everything else belongs to.

Knows the projects' paths; knows nothing of what is in one. SMEDJE_PROJECT picks the one in which other commands act.
"""

from typing import Annotated

import typer

from smedje.cli.output import JsonFlag, print_fields, print_json, print_table, say, when

app = typer.Typer(help="Make projects, which own everything else.", rich_markup_mode=None, no_args_is_help=True)

PROJECTS = "/api/projects"
Id = Annotated[str, typer.Argument(metavar="ID", help="The project's id.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="1 to 64 letters, digits, '_' or '-'.")],
    hub: Annotated[str | None, typer.Option("--hub", help="Its hub; the key's own when left out.")] = None,
    description: Annotated[str, typer.Option("--description", help="What it is for.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Make a project in a hub."""
    from smedje.cli.client import open_client

    with open_client() as client:
        project = client.post(PROJECTS, {"name": name, "hub": hub, "description": description})
    _show(project, as_json=as_json)
    if not as_json:
        say(f"next: export SMEDJE_PROJECT={project['id']}")


@app.command("list")
def list_projects(
    hub: Annotated[str | None, typer.Option("--hub", help="Only this hub's.")] = None, as_json: JsonFlag = False
) -> None:
    """List the projects that the key may read."""
    from smedje.cli.client import open_client

    with open_client() as client:
        found = client.get(PROJECTS, {"hub": hub})
    if as_json:
        print_json(found)
        return
    rows = [(one["name"], one["id"], when(one["created_at"]), when(one["archived_at"])) for one in found["data"]]
    print_table(("NAME", "ID", "CREATED", "ARCHIVED"), rows, empty="No projects. Next: smedje projects create NAME")


@app.command()
def get(project: Id, as_json: JsonFlag = False) -> None:
    """Show one project."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        _show(client.get(f"{PROJECTS}/{segment(project)}"), as_json=as_json)


@app.command()
def archive(
    project: Id,
    restore: Annotated[bool, typer.Option("--restore", help="Let it change again.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a project read-only, or let it change again."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        _show(client.patch(f"{PROJECTS}/{segment(project)}", {"archived": not restore}), as_json=as_json)


@app.command()
def delete(project: Id, as_json: JsonFlag = False) -> None:
    """Delete a project that holds nothing any more."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        answer = client.delete(f"{PROJECTS}/{segment(project)}")
    if as_json:
        print_json(answer)
    else:
        say(f"deleted {project}")


def _show(project: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(project)
        return
    shown = {field: project[field] for field in ("name", "id", "description", "hub_id", "tags")}
    print_fields({**shown, "created": when(project["created_at"]), "archived": when(project["archived_at"])})
