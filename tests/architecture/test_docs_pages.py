"""What the pages tell can be done: options, make targets, benchmarks, links and named tests are there."""

import re
from collections.abc import Iterator
from pathlib import Path

import typer
from source_tree import ROOT, text_files
from typer.core import TyperGroup

from smedje.cli.main import app

Options = dict[tuple[str, ...], frozenset[str]]


def pages() -> dict[Path, str]:
    """Every page of the repository."""
    return {path: path.read_text(encoding="utf-8") for path in text_files() if path.suffix == ".md"}


def options(group: object, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], frozenset[str]]]:
    """The options of every command, by the words that call it."""
    found = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)}  # type: ignore[attr-defined]
    yield words, frozenset(found | {"--help"})
    if isinstance(group, TyperGroup):
        for name, command in group.commands.items():
            yield from options(command, (*words, name))


def typed(text: str, known: Options) -> Iterator[tuple[str, str]]:
    """Each command with an option as a page has someone type it: (command, option)."""
    for call in re.finditer(r"\bsmedje ((?:[a-z-]+)(?: [a-z-]+)?)([^`#|\n]*)", text.replace("\\\n", " ")):
        words = tuple(call[1].split())
        while words not in known:
            words = words[:-1]
        for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", call[2]) if words else ():
            if option not in known[words]:
                yield " ".join(words), option


def test_every_option_that_a_page_types_exists() -> None:
    """An option in a command of a page is one of that command."""
    known = dict(options(typer.main.get_command(app)))
    assert "--watch" in known["jobs", "create"]
    assert list(typed("smedje jobs create F --nothing", known)) == [("jobs create", "--nothing")]
    assert not [(path.name, *slip) for path, text in pages().items() for slip in typed(text, known)]


def test_every_link_leads_somewhere() -> None:
    """Links between pages name a file that is there, and a heading in it."""
    anchors = {
        path: {anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.M)} for path, text in pages().items()
    }
    assert "the-estimate" in anchors[ROOT / "docs" / "api.md"]
    lost = []
    for path, text in pages().items():
        for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
            name, _, heading = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists() or (heading and heading not in anchors[target]):
                lost.append((path.name, link))
    assert not lost


def anchor(title: str) -> str:
    """A heading as the last part of a link."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_every_file_and_test_that_a_page_names_is_there() -> None:
    """`tests/...::test_x` names a test of that file; other paths in code marks are files."""
    lost = []
    for path, text in pages().items():
        for name, test in re.findall(r"`((?:src|tests|benchmarks|docs|examples)/[\w./-]+\.\w+)(?:::(\w+))?`", text):
            file = ROOT / name
            if not file.exists() or (test and f"def {test}(" not in file.read_text(encoding="utf-8")):
                lost.append((path.name, name, test))
    assert not lost


def test_every_job_that_a_page_names_can_be_run() -> None:
    """`make X` is a target and `bench X` a benchmark."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {*re.findall(r"^([a-z-]+):", makefile, re.M), *re.findall(r"^JOBS := (.*)$", makefile, re.M)[0].split()}
    benchmarks = {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    text = "\n".join(pages().values())
    assert targets.issuperset(re.findall(r"(?:`|^)(?:[A-Z_]+=\S+ )?make ([a-z-]+)", text, re.M))
    assert benchmarks.issuperset(re.findall(r"(?:make bench ARGS=\"|bootstrap\.py bench )([a-z]\w*)", text))
    assert benchmarks.issuperset(re.findall(r"benchmarks/(\w+)\.py", text))
