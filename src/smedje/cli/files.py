"""`smedje files`: upload, look at and delete data files on the server.

Knows the Files API's paths; knows nothing of what makes a file good.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smedje.cli import exits
from smedje.cli.files_change import diff, import_file, lineage, repair, split, told_fed, trace
from smedje.cli.output import JsonFlag, note, print_fields, print_json, print_table, say, size, when
from smedje.cli.report import has_errors, print_pair, print_report, print_whole
from smedje.errors import InvalidRequest, NotFound, Unavailable

if TYPE_CHECKING:
    from smedje.cli.client import Client

app = typer.Typer(help="Upload, look at, mend and delete data files.", rich_markup_mode=None, no_args_is_help=True)
app.command(name="repair")(repair)
app.command(name="split")(split)
app.command(name="import")(import_file)
app.command(name="diff")(diff)
app.command(name="lineage")(lineage)
app.command(name="trace")(trace)

FileId = Annotated[str, typer.Argument(metavar="FILE_ID", help="The file's id: file-...")]
CHECK_SECONDS = 600


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A JSON Lines file on this machine.")],
    purpose: Annotated[str, typer.Option("--purpose", help="What the file is for.")] = "fine-tune",
    as_json: JsonFlag = False,
) -> None:
    """Upload a file and wait until it is checked. Exit code 1 when its report has errors."""
    from smedje.cli.client import open_client

    with open_client() as client:
        file = upload_file(client, path, purpose=purpose)
        if as_json:
            print_json(file)
        else:
            _show(file)
            if file["status"] == "error":
                print_report(client.get(f"/api/files/{file['id']}/report"))
    if file["status"] == "error":
        raise typer.Exit(exits.FAILED)


@app.command("list")
def list_files(
    purpose: Annotated[str | None, typer.Option("--purpose", help="Only files for this purpose.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """List files, newest first."""
    from smedje.cli.client import open_client

    with open_client() as client:
        page = client.page("/v1/files", {"purpose": purpose}, limit=limit)
    if as_json:
        print_json(page)
        return
    rows = [
        (f["id"], f["filename"], f["purpose"], size(f["bytes"]), f.get("status"), when(f["created_at"]))
        for f in page["data"]
    ]
    print_table(
        ("ID", "NAME", "PURPOSE", "SIZE", "STATUS", "CREATED"), rows, empty="No files. Next: smedje files upload"
    )


@app.command()
def get(file_id: FileId, as_json: JsonFlag = False) -> None:
    """Show one file."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        file = client.get(f"/v1/files/{segment(file_id)}")
    if as_json:
        print_json(file)
    else:
        _show(file)


@app.command()
def delete(file_id: FileId, as_json: JsonFlag = False) -> None:
    """Delete one file."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        answer = client.delete(f"/v1/files/{segment(file_id)}")
    if as_json:
        print_json(answer)
    else:
        say(f"deleted {file_id}{told_fed(answer)}")


@app.command()
def content(
    file_id: FileId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here, not to standard output.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print a file's bytes, or save them. With --json: where they were saved and how many there are."""
    from smedje.cli.client import open_client, segment

    if as_json and output is None:
        raise typer.BadParameter("needs --output here: standard output carries the bytes.", param_hint="--json")
    with open_client() as client:
        pieces = client.download(f"/v1/files/{segment(file_id)}/content")
        if output is None:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        part = output.with_name(output.name + ".part")
        with part.open("wb") as file:
            written = sum(file.write(piece) for piece in pieces)
        part.replace(output)
    if as_json:
        print_json({"id": file_id, "path": str(output), "bytes": written})
    else:
        note(f"wrote {written} bytes to {output}")


@app.command()
def report(
    file_id: FileId,
    model: Annotated[
        str | None, typer.Option("--model", help="An installed base model: lengths in its tokens too.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option("--validation", metavar="FILE_ID", help="Its validation file: both, and leaks.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="OUT", help="Write the report as a page too.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a file's data report, what it is like, and what mends it. Exit code 1 when it has errors."""
    from smedje.cli.client import open_client, segment

    path, query = f"/api/files/{segment(file_id)}", {"model": model, "validation_file": validation}
    with open_client() as client:
        found = client.get(f"{path}/report")
        insights = client.get(f"{path}/insights", query)
        if html is not None:
            asked = "&".join(f"{name}={segment(value)}" for name, value in query.items() if value is not None)
            with html.open("wb") as page:
                page.writelines(client.download(f"{path}/page?{asked}"))
            note(f"wrote {html}")
    if as_json:
        print_json({**found, "insights": insights})
    else:
        print_whole({**found, "insights": insights, "repairs": insights["repairs"]})
        print_pair(insights.get("pair") or {})
    if has_errors(found):
        raise typer.Exit(exits.FAILED)


def upload_file(client: "Client", path: Path, *, purpose: str = "fine-tune") -> dict[str, Any]:
    """Upload a local file and wait until the server has checked it; the file object.

    Raises NotFound for a path that is no file, Unavailable when the check takes longer than ten minutes.
    """
    if not path.is_file():
        raise NotFound(f"There is no file {path}.", code="no_such_path", param=str(path))
    file = client.upload(path, purpose)
    deadline = time.monotonic() + CHECK_SECONDS
    while file.get("status") == "uploaded":
        if time.monotonic() > deadline:
            raise Unavailable(f"The server has not finished checking {file['id']}.", code="server_timeout")
        time.sleep(0.2)
        file = client.get(f"/v1/files/{file['id']}")
    return file


def file_for(client: "Client", text: str) -> str:
    """The id of the file that `text` means: itself when it is an id, else that of the path, uploaded now.

    Raises InvalidRequest when the uploaded file has errors; the server keeps it with its report.
    """
    path = Path(text)
    if text.startswith("file-") and not path.exists():
        return text
    file = upload_file(client, path)
    note(f"uploaded {path} as {file['id']}")
    if file["status"] == "error":
        raise InvalidRequest(
            f"{path} cannot be trained on: {file.get('status_details') or 'it has errors'} "
            f"See all problems with: smedje files report {file['id']}",
            code="invalid_training_data",
            param=str(path),
        )
    return str(file["id"])


def _show(file: dict[str, Any]) -> None:
    print_fields(
        {
            "id": file["id"],
            "name": file["filename"],
            "purpose": file["purpose"],
            "size": size(file["bytes"]),
            "status": file.get("status"),
            "details": file.get("status_details"),
            "created": when(file["created_at"]),
        }
    )
