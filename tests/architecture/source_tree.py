"""The repository's files as the architecture tests see them: paths, parsed modules, functions, classes."""

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "smedje"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Module:
    """One parsed Python file. name: dotted for the package's modules, the path from the root for all others."""

    path: Path
    name: str
    text: str
    tree: ast.Module

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Every function and method with its name qualified by the classes and functions around it."""
        yield from _functions(self.tree, "")

    def classes(self) -> Iterator[ast.ClassDef]:
        """Every class."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))


@cache
def product_modules() -> tuple[Module, ...]:
    """The package's modules."""
    return tuple(_module(path) for path in sorted(SOURCE.rglob("*.py")))


@cache
def script_modules() -> tuple[Module, ...]:
    """Python outside the package that is not a test: the bootstrap script and the benchmarks."""
    return tuple(_module(path) for path in (ROOT / "bootstrap.py", *sorted((ROOT / "benchmarks").rglob("*.py"))))


@cache
def test_modules() -> tuple[Module, ...]:
    """The tests and what they share."""
    return tuple(_module(path) for path in sorted((ROOT / "tests").rglob("*.py")))


test_modules.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


@cache
def text_files() -> tuple[Path, ...]:
    """Every file that belongs to the repository and holds text."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    paths = (ROOT / name for name in listed if name)
    return tuple(path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192])


def parameters(function: Function) -> list[ast.arg]:
    """A function's parameters, `self` and `cls` left out."""
    arguments = function.args
    found = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument for argument in found if argument.arg not in ("self", "cls")]


def base_name(node: ast.expr) -> str:
    """The last part of a base class's name: `Struct` for `msgspec.Struct`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return base_name(value)
    return ""


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield prefix + child.name, child
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        else:
            yield from _functions(child, prefix)


def _module(path: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    if path.is_relative_to(SOURCE):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
    else:
        name = path.relative_to(ROOT).as_posix()
    return Module(path=path, name=name, text=text, tree=ast.parse(text, filename=str(path)))
