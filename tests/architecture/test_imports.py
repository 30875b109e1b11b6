"""Who imports whom: the contracts in .importlinter hold, and each of them really catches what it forbids."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import ROOT, SOURCE

PLANTS = [
    pytest.param("training/planted.py", "import smedje.serving\n", "Layers", id="sibling"),
    pytest.param("domain/planted.py", "import smedje.api.errors\n", "Layers", id="upwards"),
    pytest.param("data/planted.py", "import smedje.store\n", "Compute packages know nothing", id="database"),
    pytest.param("services/planted.py", "from smedje.settings import Settings\n", "read settings", id="settings"),
    pytest.param("services/planted.py", "def f() -> None:\n    import torch\n", "no compute library", id="torch"),
    pytest.param("cli/planted.py", "from smedje.training import planted\n", "no compute library", id="torch behind"),
    pytest.param("planted/__init__.py", '"""New."""\n', "Layers", id="new package without a layer"),
]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package that lies below `folder`, by this repository's contracts."""
    program = Path(sys.executable).with_name("lint-imports")
    command = [program, "--config", ROOT / ".importlinter", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_import_contract_holds() -> None:
    """Layers, the database, settings and torch: all contracts are kept by the code as it is."""
    result = lint(SOURCE.parent)
    assert result.returncode == 0, result.stdout[result.stdout.find("Contracts") :]


@pytest.mark.parametrize(("path", "text", "contract"), PLANTS)
def test_a_planted_import_is_caught(tmp_path: Path, path: str, text: str, contract: str) -> None:
    """A module with one forbidden import breaks the contract that forbids it."""
    shutil.copytree(SOURCE, tmp_path / "smedje", ignore=shutil.ignore_patterns("__pycache__", "samples"))
    (tmp_path / "smedje" / "samples").mkdir()
    (tmp_path / "smedje" / "samples" / "__init__.py").write_text('"""Samples."""\n')
    (tmp_path / "smedje" / "training" / "planted.py").write_text("import torch\n")
    target = tmp_path / "smedje" / path
    target.parent.mkdir(exist_ok=True)
    target.write_text(text)
    result = lint(tmp_path)
    broken = [line for line in result.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(contract in line for line in broken), result.stdout
    assert "planted" in result.stdout
