"""`smedje models`: base models on this machine, fine-tuned models on the server.

A name that begins with `ft:` means the server; every other name means this machine's state folder and the catalog.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from smedje.cli.export import export
from smedje.cli.output import JsonFlag, note, print_fields, print_json, print_json_line, print_table, say, size, when

app = typer.Typer(help="Find, install and remove models.", rich_markup_mode=None, no_args_is_help=True)

app.command()(export)

FINE_TUNED = "ft:"
Name = Annotated[str, typer.Argument(metavar="NAME", help="A base model's name, or ft:... for a fine-tuned model.")]


@app.command("list")
def list_models(
    search: Annotated[str, typer.Option("--search", help="Only base models that match these words.")] = "",
    installed: Annotated[bool, typer.Option("--installed", help="Only base models on this machine.")] = False,
    fine_tuned: Annotated[bool, typer.Option("--fine-tuned", help="The server's fine-tuned models instead.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the catalog and what is installed here; with --fine-tuned the models that jobs made."""
    if fine_tuned:
        _list_fine_tuned(as_json=as_json)
        return
    rows = [row for row in base_models(_home(), search) if row["installed"] or not installed]
    if as_json:
        print_json({"object": "list", "data": rows, "has_more": False})
        return
    print_table(
        ("NAME", "PARAMETERS", "CONTEXT", "DISK", "LICENCE", "INSTALLED"),
        [
            (
                row["name"],
                _millions(row["parameters"]),
                row["context_tokens"],
                size(row["disk_bytes"]),
                row["licence"],
                "yes" if row["installed"] else "no",
            )
            for row in rows
        ],
        empty="No base model matches. Next: smedje models list",
    )


@app.command()
def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A catalog name, hub:ORG/NAME, a model folder or a .gguf file.")
    ],
    as_name: Annotated[str | None, typer.Option("--as", help="Its name here, when it is not in the catalog.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Install a base model on this machine; a pull that was cut off goes on. With --json: JSON lines."""
    pull_model(_home(), name, as_name=as_name, as_json=as_json)
    if not as_json:
        say(f"{as_name or name} is installed")


@app.command()
def show(name: Name, as_json: JsonFlag = False) -> None:
    """Show one model."""
    if name.startswith(FINE_TUNED):
        from smedje.cli.client import open_client, segment

        with open_client() as client:
            found = client.get(f"/v1/models/{segment(name)}")
    else:
        found = describe(_home(), name)
    if as_json:
        print_json(found)
    else:
        print_fields({key.replace("_", " "): _shown(key, value) for key, value in found.items()})


@app.command()
def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting a fine-tuned model.")] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show what deleting a fine-tuned model frees and what stands in the way.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove a base model from this machine, or delete a fine-tuned model from the server."""
    if preview:
        _preview_removal(name, as_json=as_json)
        return
    if name.startswith(FINE_TUNED):
        answer = _delete_fine_tuned(name, yes=yes)
    else:
        from smedje.modeling.folder import remove_model

        remove_model(_home(), name)
        answer = {"id": name, "object": "model", "deleted": True}
    if as_json:
        print_json(answer)
    else:
        say(f"removed {name}")


def pull_model(home: Path, name: str, *, as_name: str | None = None, as_json: bool = False) -> None:
    """Install a base model in `home`, showing how far it has come, on standard output only as JSON lines.

    Raises what `smedje.modeling.pull.pull` raises.
    """
    from smedje.cli.output import byte_progress
    from smedje.modeling.pull import pull as pull_steps

    stage = ""
    with byte_progress() as progress:
        row = progress.add_task(f"pulling {name}", total=None)
        for step in pull_steps(name, home=home, as_name=as_name):
            if as_json:
                print_json_line(asdict(step))
            elif progress.disable and step.stage != stage:
                note(f"{name}: {step.stage}")
            stage = step.stage
            text = f"{step.stage} {step.file}" if step.file else step.stage
            progress.update(row, description=text, completed=step.bytes_done, total=step.bytes_total or None)


def base_models(home: Path, search: str) -> list[dict[str, Any]]:
    """The catalog's models that match, and those that are installed under names of their own, as JSON values."""
    from smedje.modeling.catalog import load_catalog, search_catalog
    from smedje.modeling.folder import installed_models

    installed = {manifest.name: manifest for manifest in installed_models(home)}
    catalog = load_catalog()
    rows = [
        {
            "name": model.name,
            "family": model.family,
            "parameters": model.parameters,
            "context_tokens": model.context_tokens,
            "disk_bytes": installed[model.name].bytes if model.name in installed else model.disk_bytes,
            "licence": model.licence,
            "installed": model.name in installed,
        }
        for model in search_catalog(search)
    ]
    own = (m for m in installed.values() if m.name not in catalog and search.lower() in m.name)
    unknown = {"family": None, "parameters": None, "context_tokens": None, "licence": None}
    return rows + [{"name": m.name, **unknown, "disk_bytes": m.bytes, "installed": True} for m in own]


def describe(home: Path, name: str) -> dict[str, Any]:
    """One base model as a JSON value: its catalog entry, and its folder when it is installed. Raises NotFound."""
    from smedje.modeling.catalog import find_base_model, load_catalog
    from smedje.modeling.folder import is_complete, model_folder, read_manifest

    if name not in load_catalog():
        folder = model_folder(home, name)
        if not is_complete(folder):
            find_base_model(name)
        manifest = read_manifest(folder)
        facts: dict[str, Any] = {"name": name, "disk_bytes": manifest.bytes, "source": manifest.source}
    else:
        folder = model_folder(home, name)
        facts = asdict(find_base_model(name))
        facts["sources"] = [
            {key: value for key, value in source.items() if value and key != "sha256"} for source in facts["sources"]
        ]
    return {**facts, "installed": is_complete(folder), "folder": str(folder) if is_complete(folder) else None}


def _list_fine_tuned(*, as_json: bool) -> None:
    from smedje.cli.client import open_client

    with open_client() as client:
        models = [model for model in client.get("/v1/models")["data"] if model["id"].startswith(FINE_TUNED)]
    if as_json:
        print_json({"object": "list", "data": models, "has_more": False})
        return
    rows = [(model["id"], when(model["created"])) for model in models]
    print_table(("NAME", "CREATED"), rows, empty="No fine-tuned models. Next: smedje jobs create")


def _delete_fine_tuned(name: str, *, yes: bool) -> dict[str, Any]:
    import sys

    from smedje.cli.client import open_client, segment

    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("this cannot be undone; pass it to go on unasked.", param_hint="--yes")
        typer.confirm(f"Delete {name} for good?", abort=True)
    with open_client() as client:
        return client.delete(f"/v1/models/{segment(name)}")


def _preview_removal(name: str, *, as_json: bool) -> None:
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        found = client.get(f"/api/models/{segment(name)}/removal")
    if as_json:
        print_json(found)
        return
    say(f"frees {size(found['bytes'])} in {found['objects']} objects")
    for kind in ("deployments", "jobs"):
        if found[kind]:
            say(f"first: {kind} {', '.join(found[kind])}")


def _home() -> Path:
    from smedje.settings import load_settings

    return load_settings().home


def _millions(count: object) -> str | None:
    return f"{count / 1e6:,.0f} M" if isinstance(count, int) else None


def _shown(key: str, value: Any) -> object:
    if key.endswith("_bytes"):
        return size(value)
    if key == "parameters":
        return f"{value:,}"
    if key == "created":
        return when(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(_shown("", part)) for part in value)
    return value
