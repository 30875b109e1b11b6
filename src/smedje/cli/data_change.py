"""`smedje data repair`, `import` and `split`: a new file from another one, never in place. Knows options and output."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from smedje.cli.output import JsonFlag, print_json, print_table, say
from smedje.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from smedje.data.parse import ChatExample

Seed = Annotated[int, typer.Option("--seed", help="Decides what is chosen; the same seed chooses the same.")]


def repair(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A chat JSON Lines file; it stays as it is.")],
    out: Annotated[Path, typer.Option("--out", metavar="NEW", help="The file to write.")],
    step: Annotated[list[str], typer.Option("--step", help="A repair step, such as drop_duplicates; repeat for more.")],
    seed: Seed = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write a mended copy of a file: drop, trim, redact, rebalance."""
    import msgspec

    from smedje.data.repair import check_steps, repair_file

    steps = check_steps(step)
    _check_out(file, out)
    with whole(out) as sink:
        done = repair_file(file, sink.write, steps=steps, seed=seed)
    if as_json:
        print_json({"out": str(out), "steps": list(steps), "summary": done.summary, **msgspec.to_builtins(done)})
        return
    say(done.summary)
    print_table(("LINE", "STEP", "ACTION"), [(one.line, one.step, one.action) for one in done.changes[:20]], empty="")


def import_rows(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A .jsonl, .json, .csv, .tsv, .parquet or .arrow file, or a folder."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="NEW", help="The chat JSON Lines file to write.")],
    form: Annotated[
        str,
        typer.Option(
            "--format", help="auto, chat, preference, chatgpt, sharegpt, alpaca, prompt-completion or columns."
        ),
    ] = "auto",
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="ROLE=NAME", help="user=, assistant=, system= or messages= a column."),
    ] = None,
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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A chat JSON Lines file; it stays as it is.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where train, validation and test are written.")],
    shares: Annotated[str, typer.Option("--shares", help="Percentages: 80/20 or 80/10/10.")] = "80/20",
    seed: Seed = 0,
    as_json: JsonFlag = False,
) -> None:
    """Split a file by dialogue, so that no conversation is on both sides, with labels in proportion."""
    from smedje.data.dialogues import DialogueGroups, split_shares
    from smedje.data.insights import answer, label_counts
    from smedje.data.parse import read_examples

    parts = _shares(shares)
    _check_out(file, out / "train.jsonl")
    groups, answers = DialogueGroups(), []
    lines: list[int] = []
    example: ChatExample
    for example in read_examples(file):
        groups.add(example)
        answers.append(answer(example))
        lines.append(example.line)
    labels = answers if label_counts(answers) else None
    chosen = split_shares(len(lines), parts, seed=seed, groups=groups.groups(), labels=labels)
    out.mkdir(parents=True, exist_ok=True)
    names = ("train", "validation", "test")[: len(parts)]
    written = {name: len(rows) for name, rows in zip(names, chosen, strict=True)}
    _write_parts(
        file, {lines[row]: out / f"{name}.jsonl" for name, rows in zip(names, chosen, strict=True) for row in rows}
    )
    if as_json:
        print_json({"out": str(out), "seed": seed, "by_label": labels is not None, "rows": written})
        return
    say(f"{out}: " + ", ".join(f"{rows} rows in {name}.jsonl" for name, rows in written.items()))


def _write_parts(file: Path, targets: "dict[int, Path]") -> None:
    from contextlib import ExitStack

    from smedje.data.lines import read_lines

    with ExitStack() as stack:
        open_files = {path: stack.enter_context(path.open("wb")) for path in set(targets.values())}
        for line in read_lines(file):
            if line.number in targets and line.raw is not None:
                open_files[targets[line.number]].write(line.raw + b"\n")


def _shares(text: str) -> list[float]:
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InvalidRequest(
            f"--shares is {text!r}; write percentages such as 80/20 or 80/10/10.", code="invalid_value"
        )
    if sum(map(int, parts)) != 100:
        raise InvalidRequest(f"--shares {text} adds up to {sum(map(int, parts))}, not to 100.", code="invalid_value")
    return [int(part) / 100 for part in parts]


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
