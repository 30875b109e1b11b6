"""What is written down matches what is there, in words that are the product's own."""

import ast
import re
from collections.abc import Iterator

import typer
from source_tree import (
    ROOT,
    Function,
    Module,
    base_name,
    product_modules,
    script_modules,
    test_modules,
    text_files,
)
from test_frozen_surfaces import commands, error_codes, settings

from smedje.cli.main import app

# Paths of one person's machine. They help nobody else.
MACHINE_PATHS = re.compile(r"(?<![\w.~-])/(?:work|root|tmp/w|opt/(?:pypi|wheels))\b|/home/(?!user\b)[a-z]\w*/")
# Words that stand for nothing, and the second names of things that have one.
VAGUE = re.compile(r"(?:^|_)(?:utils?|helpers?|manager|handler|tenant|workspace|blob|experiment|trainer)(?:$|_)")


def documentation() -> str:
    """The README and every page in docs/."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def test_every_setting_is_documented() -> None:
    """Each environment variable that is read stands in the README or in docs/."""
    text = documentation()
    names = [line.split(":")[0].split(" ")[0] for line in settings().splitlines()]
    assert len(names) > 5
    assert not [name for name in names if name not in text]


def test_every_command_is_documented() -> None:
    """Each command stands in docs/cli.md as one would type it."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    typed = [" ".join(("smedje", *words)) for words in commands(typer.main.get_command(app)) if words]
    assert not [command for command in typed if command not in text]


def test_every_command_that_a_text_names_exists() -> None:
    """Remedies in messages and lines in the docs name commands that can be typed."""
    known = {" ".join(words) for words in commands(typer.main.get_command(app))}
    groups = {words.split()[0] for words in known if " " in words}
    pattern = re.compile(rf"\bsmedje ({'|'.join(sorted(groups))}) ([a-z-]+)\b")
    texts = {path: path.read_text(encoding="utf-8") for path in text_files() if path.suffix in (".py", ".md")}
    found = {
        f"{path.relative_to(ROOT)}: smedje {group} {verb}"
        for path, text in texts.items()
        for group, verb in pattern.findall(text)
        if f"{group} {verb}" not in known
    }
    assert not found


def test_every_error_code_is_documented() -> None:
    """Each code that an error can carry stands in docs/errors.md."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    codes = error_codes().split("\n\n")[1].split()
    assert len(codes) > 50
    assert not [code for code in codes if f"`{code}`" not in text]


def test_every_module_says_what_it_is_for() -> None:
    """Each module of the product begins with a docstring."""
    modules = product_modules() + script_modules()
    assert not [m.name for m in modules if m.text.strip() and not ast.get_docstring(m.tree)]


def public_definitions(module: Module) -> Iterator[tuple[str, ast.AST]]:
    """Public functions and classes, and public methods of public classes that are more than a protocol."""
    for node in module.tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if "Protocol" not in map(base_name, node.bases):
                for part in node.body:
                    if isinstance(part, Function) and not part.name.startswith("_"):
                        yield f"{node.name}.{part.name}", part


def test_every_public_function_and_class_says_what_it_does() -> None:
    """Public functions, classes and methods of the product have docstrings."""
    found = [
        f"{module.name}:{name}"
        for module in product_modules()
        for name, node in public_definitions(module)
        if not ast.get_docstring(node)  # type: ignore[arg-type]
    ]
    assert not found


def test_every_test_states_the_behaviour_it_proves() -> None:
    """Each test function has a docstring."""
    found = [
        f"{module.name}:{name}"
        for module in test_modules()
        for name, node in module.functions()
        if name.rpartition(".")[2].startswith("test_") and module.path.name.startswith("test_")
        if not ast.get_docstring(node)
    ]
    assert not found


def test_test_files_have_names_of_their_own() -> None:
    """No two test files share a name, so that a report needs no path."""
    names = [m.path.name for m in test_modules() if m.path.name not in ("__init__.py", "conftest.py")]
    assert len(names) == len(set(names))


def test_no_file_names_a_path_of_one_machine() -> None:
    """No text in the repository holds an absolute path that exists on its author's machine only."""
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in text_files()
        if (match := MACHINE_PATHS.search(path.read_text(encoding="utf-8", errors="replace")))
    ]
    assert not found


def test_names_are_not_vague() -> None:
    """No module, class or function of ours carries a word that stands for nothing, or a second name of a thing."""
    found = [m.name for m in product_modules() if VAGUE.search(m.path.stem)]
    for module in product_modules():
        names = [name.rpartition(".")[2] for name, _ in module.functions()] + [node.name for node in module.classes()]
        found += [f"{module.name}:{name}" for name in names if VAGUE.search(snake(name))]
    assert not found


def snake(name: str) -> str:
    """CamelCase in words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
