"""The command line starts light: what it must not load it does not load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "peft", "openai", "fastapi", "sqlalchemy", "numpy", "httpx2", "rich", "tokenizers")
PROGRAM = """
import json, sys
from smedje.cli.main import run
code = run(sys.argv[1:])
print()
print(json.dumps({"code": code, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def loaded(words: list[str], home: Path) -> set[str]:
    """The top-level packages that a command has loaded when it ends, in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        check=True,
        env={"SMEDJE_HOME": str(home), "PATH": "/usr/bin:/bin"},
    )
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["code"] in (0, 1), result
    return set(told["modules"])


@pytest.mark.parametrize("words", [["--help"], ["jobs", "create", "--help"], ["--version"]])
def test_help_loads_only_typer(tmp_path: Path, words: list[str]) -> None:
    """Help comes at once: no compute library, no web framework, no database, not even an HTTP client."""
    assert not loaded(words, tmp_path).intersection(HEAVY)


@pytest.mark.parametrize("words", [["doctor"], ["models", "list", "--json"]])
def test_looking_around_loads_no_compute_library(tmp_path: Path, words: list[str]) -> None:
    """`doctor` says whether torch is there without importing it, and the catalog needs none of it."""
    assert not loaded(words, tmp_path).intersection({"torch", "transformers", "peft", "fastapi", "sqlalchemy"})


def test_settings_and_services_load_no_compute_library(tmp_path: Path) -> None:
    """Every module of the control plane can be imported where torch is not installed."""
    program = (
        "import sys, pkgutil, smedje.services, smedje.api, smedje.store, smedje.domain, smedje.executors\n"
        "packages = [smedje.services, smedje.api, smedje.store, smedje.domain, smedje.executors]\n"
        "names = [m.name for p in packages for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.')]\n"
        "for name in names: '.migrations.' in name or __import__(name)\n"  # alembic runs those, they are not imported
        "print(len(names), *sorted({'torch', 'transformers', 'peft', 'ray'} & sys.modules.keys()))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    count, *heavy = result.stdout.split()
    assert int(count) > 20
    assert not heavy
