"""`smedje data repair`, `import` and `split`: a new file from another one, never in place. Knows options and output."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smedje.cli.output import JsonFlag, print_json, print_table, say
from smedje.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from smedje.data.importers import Mapped
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
    with out.open("wb") as sink:
        done = repair_file(file, sink.write, steps=steps, seed=seed)
    if as_json:
        print_json({"out": str(out), "steps": list(steps), "summary": done.summary, **msgspec.to_builtins(done)})
        return
    say(done.summary)
    print_table(("LINE", "STEP", "ACTION"), [(one.line, one.step, one.action) for one in done.changes[:20]], empty="")


def import_rows(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A .jsonl, .json, .csv or .tsv file, or a folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="NEW", help="The chat JSON Lines file to write.")],
    form: Annotated[
        str, typer.Option("--format", help="auto, chat, sharegpt, alpaca, prompt-completion or columns.")
    ] = "auto",
    column: Annotated[
        list[str] | None, typer.Option("--column", metavar="ROLE=NAME", help="user=, assistant= or system= a column.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Convert ShareGPT, Alpaca, prompt/completion, CSV, TSV or a folder of them; every row is accounted for."""
    import msgspec

    from smedje.data.importers import import_path

    columns = _columns(column or [])
    _check_out(source, out)
    with out.open("wb") as sink:
        done = import_path(source, sink.write, form=form, columns=columns)
    if as_json:
        print_json({"out": str(out), "summary": done.summary, **msgspec.to_builtins(done)})
        return
    say(done.summary)
    for name, rows in done.unused_columns.items():
        say(f"the column {name} of {rows} rows has no place in a chat")
    print_table(("FILE", "ROW", "WHY"), [(one.file, one.row, one.reason) for one in done.dropped[:20]], empty="")


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


def _columns(given: list[str]) -> "Mapped | None":
    from smedje.data.importers import Mapped

    pairs = dict(one.partition("=")[::2] for one in given)
    if not pairs:
        return None
    if not {"user", "assistant"} <= pairs.keys() <= {"user", "assistant", "system"} or not all(pairs.values()):
        raise InvalidRequest(
            "--column needs user=NAME and assistant=NAME, and may have system=NAME.",
            code="invalid_value",
            param="column",
        )
    return Mapped(user=pairs["user"], assistant=pairs["assistant"], system=pairs.get("system"))


def _check_out(source: Path, out: Path) -> None:
    if not source.exists():
        raise NotFound(f"There is no file {source}.", code="no_such_path", param=str(source))
    if out.exists():
        raise InvalidRequest(f"{out} is already there; nothing is written over.", code="already_there", param="out")
