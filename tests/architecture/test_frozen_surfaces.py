"""What scripts rely on changes only on purpose: command line help, settings, error codes, file formats' names.

Each surface is a text file in snapshots/. To change one on purpose, run this file with UPDATE_SNAPSHOTS=1 in the
environment, read the difference, and commit it with the change.
"""

import ast
import difflib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from source_tree import product_modules
from typer.testing import CliRunner

from smedje import errors
from smedje.cli import exits
from smedje.cli.main import app
from smedje.settings import OTHER_VARIABLES, variables

SNAPSHOTS = Path(__file__).with_name("snapshots")
WIDTH = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def commands(group: object, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command of the tree as the words that call it, the root first."""
    yield words
    for name, command in sorted(getattr(group, "commands", {}).items()):
        yield from commands(command, (*words, name))


def cli_help() -> str:
    """The help of every command."""
    runner = CliRunner()
    parts = []
    for words in commands(typer.main.get_command(app)):
        result = runner.invoke(app, [*words, "--help"], prog_name="smedje", env=WIDTH)
        assert result.exit_code == 0, result.output
        parts.append("\n".join(line.rstrip() for line in result.output.strip().splitlines()))
    return "\n\n\n".join(parts) + "\n"


def settings() -> str:
    """Every environment variable that is read, with its type and default."""
    lines = [f"{name} (client)" for name in sorted(OTHER_VARIABLES)]
    for name, field in variables().items():
        kind = getattr(field.type, "__name__", str(field.type))
        default = "the platform's user data folder" if field.name == "home" else repr(field.default)
        lines.append(f"{name}: {kind} = {default}")
    return "\n".join(lines) + "\n"


def error_codes() -> str:
    """Every machine-readable error code, and every error class with its default code and exit code."""
    lines = []
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.SmedjeError):
            lines.append(f"{kind.__name__}: {kind.default_code}, exit code {exits.exit_code(kind('text'))}")
    codes: set[str] = set()
    for module in product_modules():
        for node in ast.walk(module.tree):
            match node:
                case ast.keyword(arg="code", value=ast.Constant(value=str(code))):
                    codes.add(code)
    return "\n".join(lines) + "\n\n" + "\n".join(sorted(codes)) + "\n"


@pytest.mark.parametrize(
    ("name", "surface"),
    [("cli_help.txt", cli_help), ("settings.txt", settings), ("error_codes.txt", error_codes)],
    ids=["help", "settings", "errors"],
)
def test_a_surface_is_as_it_was(name: str, surface: "object") -> None:
    """The surface equals its snapshot; the difference shows what would break for whom."""
    assert callable(surface)
    found = surface()
    file = SNAPSHOTS / name
    if os.environ.get("UPDATE_SNAPSHOTS"):
        file.write_text(found, encoding="utf-8")
    kept = file.read_text(encoding="utf-8")
    difference = "\n".join(difflib.unified_diff(kept.splitlines(), found.splitlines(), "snapshot", "now", lineterm=""))
    assert found == kept, difference


def test_every_command_takes_json() -> None:
    """Each command that does something has --json, so that a script never has to read a table."""
    tree = typer.main.get_command(app)
    found = []
    for words in commands(tree):
        command = tree
        for word in words:
            command = command.commands[word]  # type: ignore[attr-defined]
        options = {option for parameter in command.params for option in parameter.opts}
        if not getattr(command, "commands", None) and "--json" not in options:
            found.append(" ".join(words))
    assert not found
