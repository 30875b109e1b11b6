"""`smedje data`: look at a data file on this machine, without a server.

Knows the data package's functions; the rules themselves are in smedje.data.
"""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smedje.cli import exits
from smedje.cli.base_model import limit_of, tokenizer_of
from smedje.cli.data_change import import_rows, repair, split
from smedje.cli.output import JsonFlag, note, print_json, say
from smedje.cli.report import has_errors, print_pair, print_whole
from smedje.errors import NotFound

if TYPE_CHECKING:
    from smedje.data.insights import Insights
    from smedje.data.report import Report

app = typer.Typer(help="Check, repair, convert and split data.", rich_markup_mode=None, no_args_is_help=True)
app.command(name="repair")(repair)
app.command(name="import")(import_rows)
app.command(name="split")(split)

SHOWN_ROWS = 3

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A chat JSON Lines file.")]


@app.callback()
def data() -> None:
    """Check, repair, convert and split data before it is uploaded."""


@app.command()
def check(
    file: FileArgument,
    model: Annotated[
        str | None, typer.Option("--model", help="An installed base model: check lengths in its tokens too.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option("--validation", metavar="OTHER", help="Its validation file: report both, and leaks.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="OUT", help="Write the report as a page too.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Report every problem with line, field, code and remedy, and what the data is like. Exit code 1 on errors."""
    from smedje.data.page import report_page

    found = _report(file, model, validation)
    if html is not None:
        views = _views(file, model) if model is not None else []
        html.write_text(report_page(found, title=file.name, views=views), encoding="utf-8")
        note(f"wrote {html}")
    if as_json:
        print_json(found)
    else:
        print_whole(found)
        if "validation" in found:
            say(f"\nvalidation file {validation}:")
            print_whole(found["validation"])
            print_pair(found["pair"])
    if has_errors(found) or has_errors(found.get("validation") or {}):
        raise typer.Exit(exits.FAILED)


@app.command()
def show(
    file: FileArgument,
    row: Annotated[int, typer.Option("--row", min=1, help="The line, from 1.")],
    model: Annotated[str, typer.Option("--model", help="An installed base model: its template and tokens.")],
    as_json: JsonFlag = False,
) -> None:
    """Show one line as training sees it: its text with what is learnt marked, token by token with --json."""
    import msgspec

    from smedje.data.view import view_line

    view = view_line(existing(file), row, tokenizer_of(model))
    if as_json:
        print_json(msgspec.to_builtins(view))
        return
    for number, example in enumerate(view.examples, 1):
        say(f"line {view.line}, example {number}: {len(example.tokens)} tokens, {example.trained} learnt")
        pieces, learnt = [], False
        for token in example.tokens:
            if (token.weight > 0) is not learnt:
                pieces.append("⟦" if token.weight > 0 else "⟧")
                learnt = token.weight > 0
            pieces.append(token.text)
        say("".join(pieces) + ("⟧" if learnt else ""))
    say("What stands in ⟦ ⟧ is learnt; the rest is context.")


def existing(file: Path) -> Path:
    """`file` itself. Raises NotFound when it is not there."""
    if not file.is_file():
        raise NotFound(f"There is no file {file}.", code="no_such_path", param=str(file))
    return file


def _report(file: Path, model: str | None, validation: Path | None) -> dict[str, Any]:
    """The report of a file, with that of its validation file and of the two together when there is one."""
    from smedje.data.insights import by_weight, insights_to_dict
    from smedje.data.parts import compare_sides
    from smedje.data.remedies import advice_of, told_repairs
    from smedje.data.report import report_to_dict

    report, insights = _one(existing(file), model)
    other: dict[str, Any] = {}
    if validation is not None:
        held, seen = _one(existing(validation), model)
        sides = compare_sides(file, validation, (insights, seen))
        insights = replace(insights, findings=by_weight([*insights.findings, *sides.findings]))
        other["validation"] = {**report_to_dict(held), "insights": insights_to_dict(seen)}
        other["validation"]["insights"]["advice"] = advice_of(other["validation"])
        other["validation"]["repairs"] = told_repairs(other["validation"], name=str(validation))
        other["pair"] = {"labels": dict(sides.labels), "languages": dict(sides.languages)}
    found = {**report_to_dict(report), "insights": insights_to_dict(insights), **other}
    found["insights"]["advice"] = advice_of(found)
    return {**found, "repairs": told_repairs(found, name=str(file))}


def _views(file: Path, model: str) -> list[dict[str, Any]]:
    """The first lines that are chats as training sees them, for the page."""
    import msgspec

    from smedje.data.forms import read_items
    from smedje.data.view import view_line

    lines = [item.line for item in islice((one for one in read_items(file) if one.example), SHOWN_ROWS)]
    return [msgspec.to_builtins(view_line(file, line, tokenizer_of(model))) for line in lines]


def _one(file: Path, model: str | None) -> "tuple[Report, Insights]":
    from smedje.data.counting import count_tokens
    from smedje.data.forms import validate_any
    from smedje.data.insights import look_at, with_token_bars
    from smedje.data.report import with_tokens

    report, insights = validate_any(file), look_at(file)
    if model is not None:
        counted = count_tokens(file, tokenizer_of(model), max_tokens=limit_of(model))
        report = with_tokens(report, counted.problems, counted.statistics)
        insights = with_token_bars(insights, counted.statistics)
    return report, insights
