"""`smedje files repair`, `split`, `import`, `diff`, `lineage` and `trace`: new files from old ones on the server.

Knows the routes under /api/files; knows nothing of what makes a file good.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from smedje.cli.data_change import (
    Advised,
    Columns,
    Format,
    LimitModel,
    Seed,
    Shares,
    Steps,
    named_columns,
    print_account,
    print_diff,
)
from smedje.cli.output import JsonFlag, note, print_fields, print_json, print_table, say, when
from smedje.errors import InvalidRequest, NotFound

FileId = Annotated[str, typer.Argument(metavar="FILE_ID", help="The file's id: file-...")]
URLS = ("https://", "http://")


def repair(
    file_id: FileId,
    step: Steps = None,
    advised: Advised = False,
    against: Annotated[
        str | None, typer.Option("--against", metavar="FILE_ID", help="Of drop_leaks: the file to compare with.")
    ] = None,
    model: LimitModel = None,
    seed: Seed = 0,
    as_json: JsonFlag = False,
) -> None:
    """Make a mended copy of a file; the file stays as it is."""
    body = {"steps": step or [], "advised": advised, "seed": seed, "against": against, "model": model}
    _print_made(_post(file_id, "repair", body), as_json=as_json)


def split(
    file_id: FileId,
    shares: Shares = "80/20",
    seed: Seed = 0,
    as_json: JsonFlag = False,
) -> None:
    """Make a file of each part, by dialogue and with labels in proportion."""
    found = _post(file_id, "split", {"shares": shares, "seed": seed})
    if as_json:
        print_json(found)
        return
    rows = [
        (name, part["file"]["id"], part["file"]["filename"], part["made_from"]["lines_written"])
        for name, part in found["parts"].items()
    ]
    print_table(("PART", "ID", "NAME", "ROWS"), rows, empty="")


def import_file(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A path, uploaded first; a file id; or a URL, if allowed.")
    ],
    form: Format = "auto",
    column: Columns = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the new file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a training file of a file in another format; every row is accounted for."""
    from smedje.cli.client import open_client, segment

    body: dict[str, Any] = {"format": form, "columns": named_columns(column or []), "filename": name}
    with open_client() as client:
        if source.startswith(URLS):
            found = client.post("/api/files/import", {**body, "url": source})
        else:
            path = Path(source)
            if not path.is_file() and not source.startswith("file-"):
                raise NotFound(f"There is no file {source}.", code="no_such_path", param=source)
            file_id = str(client.upload(path, "user_data")["id"]) if path.is_file() else source
            found = client.post(f"/api/files/{segment(file_id)}/import", body)
    _print_made(found, as_json=as_json)


def diff(
    file_id: FileId,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many lines.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Show what the repair that made a file changed, line by line."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        found = client.get(f"/api/files/{segment(file_id)}/diff", {"limit": min(limit, 100)})
    if as_json:
        print_json(found)
        return
    print_diff(found["data"])
    if found["has_more"]:
        note("there are more; --limit shows them")


def lineage(file_id: FileId, as_json: JsonFlag = False) -> None:
    """Show from which file one was made and how, what was made of it, and which jobs used it."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        found = client.get(f"/api/files/{segment(file_id)}/lineage")
    if as_json:
        print_json(found)
        return
    made = found["made_from"]
    print_fields(
        {
            "made from": None if made is None else f"{made['parent'] or 'a URL'} ({made['parent_filename']})",
            "how": None if made is None else f"{made['kind']}: {made['summary']}",
            "when": None if made is None else when(made["created_at"]),
            "made into": ", ".join(found["made_into"]) or None,
            "used in": ", ".join(found["used_in"]) or None,
        }
    )


def trace(
    file_id: Annotated[str | None, typer.Argument(metavar="[FILE_ID]", help="The file that has the row.")] = None,
    line: Annotated[int | None, typer.Option("--line", min=1, help="The row's line in it, from 1.")] = None,
    row: Annotated[
        str | None, typer.Option("--row", metavar="JSON", help="The row itself, or a path to a file with it.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show which models saw a row: FILE_ID with --line, or --row."""
    from smedje.cli.client import open_client, segment

    if (row is None) == (file_id is None or line is None):
        raise InvalidRequest("Say FILE_ID with --line, or --row.", code="missing_field", param="row")
    with open_client() as client:
        if row is None:
            found = client.get(f"/api/files/{segment(str(file_id))}/rows/{line}/models")
        else:
            text = row if row.lstrip().startswith("{") else Path(row).read_text(encoding="utf-8")
            found = client.post("/api/files/trace", {"row": text})
    if as_json:
        print_json(found)
        return
    rows = [
        (one["file_id"], one["filename"], ", ".join(map(str, one["lines"][:6])), "yes" if one["deleted"] else None)
        for one in found["files"]
    ]
    print_table(("FILE", "NAME", "LINES", "DELETED"), rows, empty="No file has this row.")
    seen = [(one["model"], one["job"], one["used_as"] or f"continues {one['through']}") for one in found["models"]]
    print_table(("MODEL", "JOB", "SAW IT AS"), seen, empty="No model saw this row.")


def told_fed(answer: Mapping[str, Any]) -> str:
    """What a deleted file fed, for the line that says it is gone; empty for nothing."""
    fed = answer.get("smedje")
    if not fed:
        return ""
    models = f"; models that saw it: {', '.join(fed['models'])}" if fed["models"] else ""
    return f"; it was used in {', '.join(fed['jobs'])}{models}"


def _post(file_id: str, verb: str, body: Mapping[str, Any]) -> dict[str, Any]:
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        return client.post(f"/api/files/{segment(file_id)}/{verb}", body)


def _print_made(found: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    file, made = found["file"], found["made_from"]
    if made["kind"] == "import":
        print_account(made["summary"], made["account"])
    else:
        say(made["summary"])
    print_fields({"id": file["id"], "name": file["filename"], "status": file["status"]})
    if made["kind"] == "repair" and made["changes"]:
        say(f"what changed: smedje files diff {file['id']}")
