"""`smedje data repair`, `import` and `split`: a new file from another one, never in place. Knows options and output."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from smedje.cli.output import JsonFlag, print_json, print_table, say
from smedje.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from smedje.data.repair import Beside

# Options that mean the same here and on the server (files_change.py).
Seed = Annotated[int, typer.Option("--seed", help="Decides what is chosen; the same seed chooses the same.")]
Steps = Annotated[
    list[str] | None, typer.Option("--step", help="A repair step, such as drop_duplicates; repeat for more.")
]
Advised = Annotated[bool, typer.Option("--advised", help="Every step that the file's report speaks for.")]
LimitModel = Annotated[str | None, typer.Option("--model", help="Of drop_too_long: an installed base model.")]
Shares = Annotated[str, typer.Option("--shares", help="Percentages: 80/20 or 80/10/10.")]
Format = Annotated[
    str,
    typer.Option("--format", help="auto, chat, preference, chatgpt, sharegpt, alpaca, prompt-completion or columns."),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="ROLE=NAME", help="user=, assistant=, system= or messages= a column."),
]


def repair(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON Lines file; it stays as it is.")],
    out: Annotated[Path, typer.Option("--out", metavar="NEW", help="The file to write.")],
    step: Steps = None,
    advised: Advised = False,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="OTHER", help="Of drop_leaks: the file to compare with.")
    ] = None,
    model: LimitModel = None,
    seed: Seed = 0,
    diff: Annotated[bool, typer.Option("--diff", help="Print each changed line before and after.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a mended copy of a file: clean, merge, trim, redact, drop, rebalance."""
    import msgspec

    from smedje.data.diff import diff_lines
    from smedje.data.repair import Beside, check_steps, repair_file

    beside = Beside(against=against) if model is None else _beside(against, model)
    steps = check_steps([*(step or ()), *(advised_steps(file) if advised else ())], beside)
    _check_out(file, out)
    with whole(out) as sink:
        done = repair_file(file, sink.write, steps=steps, seed=seed, beside=beside)
    changed = list(diff_lines(file, out, done.changes)) if diff else []
    if as_json:
        body = {"out": str(out), "steps": list(steps), "summary": done.summary, **msgspec.to_builtins(done)}
        print_json({**body, "diff": msgspec.to_builtins(changed)} if diff else body)
        return
    say(done.summary)
    if diff:
        print_diff(msgspec.to_builtins(changed))
    else:
        rows = [(one.line, one.step, one.action) for one in done.changes[:20]]
        print_table(("LINE", "STEP", "ACTION"), rows, empty="")


def print_diff(lines: Sequence[Mapping[str, Any]]) -> None:
    """Changed lines, before and after."""
    for one in lines:
        say(f"@@ line {one['line']}: {', '.join(one['steps'])}")
        say(f"- {one['before']}")
        if one["after"] is not None:
            say(f"+ {one['after']}")


def advised_steps(file: Path) -> list[str]:
    """The steps that the file's own report speaks for, without those that need another file or a base model."""
    from smedje.data.forms import validate_any
    from smedje.data.insights import insights_to_dict, look_at
    from smedje.data.remedies import advised
    from smedje.data.report import report_to_dict

    if not file.is_file():
        raise NotFound(f"There is no file {file}.", code="no_such_path", param=str(file))
    return advised({**report_to_dict(validate_any(file)), "insights": insights_to_dict(look_at(file))})


def _beside(against: Path | None, model: str) -> "Beside":
    from smedje.cli.base_model import limit_of, tokenizer_of
    from smedje.data.repair import Beside

    return Beside(against=against, tokenizer=tokenizer_of(model), max_tokens=limit_of(model))


def import_rows(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A .jsonl, .json, .csv, .tsv, .parquet or .arrow file, or a folder."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="NEW", help="The chat JSON Lines file to write.")],
    form: Format = "auto",
    column: Columns = None,
    only_split: Annotated[
        str | None, typer.Option("--split", help="Of a dataset folder: train, validation or test.")
    ] = None,
    account: Annotated[
        Path | None, typer.Option("--account", metavar="OUT", help="Write what became of each row: JSON lines.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Convert other formats, tables, chat exports and dataset folders; every row is accounted for."""
    import msgspec

    from smedje.data.import_rows import check_mapping
    from smedje.data.importers import Account, plan_import, take_rows

    columns = check_mapping(named_columns(column or []))
    for target in (out, account):
        if target is not None:
            _check_out(source, target)
    plan, told = plan_import(source, form=form, columns=columns, split=only_split), Account()
    with whole(out) as sink, account.open("wb") if account else nullcontext() as entries:
        for one in take_rows(plan):
            told.add(one)
            if one.line is not None:
                sink.write(one.line + b"\n")
            if entries is not None:
                entries.write(msgspec.json.encode(one.to_dict(told.kept)) + b"\n")
        done = told.result()
        if not done.kept:
            raise InvalidRequest(f"Not one row could be taken. {done.summary}".strip(), code="nothing_left")
    if as_json:
        print_json({"out": str(out), "summary": done.summary, **msgspec.to_builtins(done)})
    else:
        print_account(done.summary, msgspec.to_builtins(done))


def print_account(summary: str, done: Mapping[str, Any]) -> None:
    """An import's account in words: the first rows that were dropped or shortened, and columns without a place."""
    say(summary)
    for name, rows in done["unused_columns"].items():
        say(f"the column {name} of {rows} rows has no place in a chat")
    rows = [(one["file"], one["row"], "dropped", one["reason"]) for one in done["dropped"]]
    rows += [(one["file"], one["row"], "kept without", one["reason"]) for one in done["trimmed"]]
    print_table(("FILE", "ROW", "WHAT", "WHY"), rows[:20], empty="")


def named_columns(given: list[str]) -> dict[str, str]:
    """ROLE=NAME words as a mapping."""
    return dict(one.partition("=")[::2] for one in given)


def split(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON Lines file; it stays as it is.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where train, validation and test are written.")],
    shares: Shares = "80/20",
    seed: Seed = 0,
    as_json: JsonFlag = False,
) -> None:
    """Split a file by dialogue, so that no conversation is on both sides, with labels in proportion."""
    from smedje.data.parts import check_shares, split_file, write_parts

    wanted = check_shares(shares)
    _check_out(file, out / "train.jsonl")
    parts = split_file(file, wanted, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        sinks = {name: stack.enter_context((out / f"{name}.jsonl").open("wb")) for name in parts.lines}
        write_parts(file, parts, {name: sink.write for name, sink in sinks.items()})
    written = {name: len(lines) for name, lines in parts.lines.items()}
    if as_json:
        print_json({"out": str(out), "seed": seed, "by_label": parts.by_label, "rows": written})
        return
    say(f"{out}: " + ", ".join(f"{rows} rows in {name}.jsonl" for name, rows in written.items()))


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A new file that is there only when it was written to its end."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as sink:
            yield sink
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check_out(source: Path, out: Path) -> None:
    if not source.exists():
        raise NotFound(f"There is no file {source}.", code="no_such_path", param=str(source))
    if out.exists():
        raise InvalidRequest(f"{out} is already there; nothing is written over.", code="already_there", param="out")
