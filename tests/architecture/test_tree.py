"""ARCHITECTURE.md shows the tree as it is: every module with the first sentence of its docstring."""

import ast
import os
import re
from pathlib import Path

from source_tree import ROOT, SOURCE

PAGE = ROOT / "ARCHITECTURE.md"
BLOCK = re.compile(r"<!-- tree -->\n.*?<!-- /tree -->", re.DOTALL)


def sentence_of(path: Path) -> str:
    """The module's docstring up to the end of its first sentence, on one line; empty for a file without one."""
    docstring = (ast.get_docstring(ast.parse(path.read_text())) if path.exists() else None) or ""
    text = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0].rstrip(".")


def tree() -> str:
    """Packages in the order of the layers' names, modules by name, one line each."""
    lines: list[str] = []
    folders = sorted({path.parent for path in SOURCE.rglob("*.py")})
    for folder in folders:
        name = folder.relative_to(SOURCE).as_posix()
        about = sentence_of(folder / "__init__.py")
        lines.append(f"{'' if name == '.' else name + '/':<24}{about}")
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py":
                lines.append(f"  {path.name:<22}{sentence_of(path)}")
    return "<!-- tree -->\n```\n" + "\n".join(line.rstrip() for line in lines) + "\n```\n<!-- /tree -->"


def test_the_page_shows_the_tree_as_it_is() -> None:
    """The tree in ARCHITECTURE.md equals the code's; UPDATE_SNAPSHOTS=1 writes it anew."""
    page = PAGE.read_text(encoding="utf-8")
    expected = BLOCK.sub(lambda _: tree(), page)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        PAGE.write_text(expected, encoding="utf-8")
        page = expected
    assert page == expected, "run UPDATE_SNAPSHOTS=1 pytest tests/architecture/test_tree.py"
