"""`smedje data`: look at a data file on this machine, without a server.

Knows the validator's functions; the rules themselves are in smedje.data.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smedje.cli import exits
from smedje.cli.output import JsonFlag, print_json
from smedje.cli.report import has_errors, print_report
from smedje.errors import NotFound

if TYPE_CHECKING:
    from smedje.data.report import Report

app = typer.Typer(help="Check data before it is uploaded.", rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def data() -> None:
    """Check data before it is uploaded."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A chat JSON Lines file.")],
    model: Annotated[
        str | None, typer.Option("--model", help="An installed base model: check lengths in its tokens too.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Report every problem with line, field, code and remedy. Exit code 1 when there are errors."""
    from smedje.data.report import report_to_dict
    from smedje.data.validate import validate_file

    if not file.is_file():
        raise NotFound(f"There is no file {file}.", code="no_such_path", param=str(file))
    report = validate_file(file)
    found = report_to_dict(report if model is None else _in_tokens_of(model, file, report))
    if as_json:
        print_json(found)
    else:
        print_report(found)
    if has_errors(found):
        raise typer.Exit(exits.FAILED)


def _in_tokens_of(model: str, file: Path, report: "Report") -> "Report":
    from smedje.chat.tokenizer import load_chat_tokenizer
    from smedje.data.report import with_tokens
    from smedje.data.validate import check_tokens
    from smedje.modeling.catalog import load_catalog
    from smedje.modeling.folder import installed_folder
    from smedje.settings import load_settings

    tokenizer = load_chat_tokenizer(installed_folder(load_settings().home, model))
    entry = load_catalog().get(model)
    limit = entry.defaults.max_tokens_per_example if entry else None
    problems, tokens = check_tokens(file, tokenizer, max_tokens=limit)
    return with_tokens(report, problems, tokens)
