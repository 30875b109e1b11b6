"""`smedje doctor` and what it knows of the machine: every row, its remedy, and the limits of a container."""

import json
import os
import shutil
from pathlib import Path

import pytest

from smedje.cli.doctor import disk_row, home_row, models_row, python_row, sqlite_row
from smedje.cli.machine import look
from smedje.cli.main import run
from smedje.modeling.folder import MANIFEST, write_manifest
from smedje.objects.machine import free_memory, memory_limit, usable_cores


def test_a_fit_machine_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All required rows are there and none fails; a machine without models is told how to get one."""
    monkeypatch.setenv("SMEDJE_HOME", str(tmp_path / "not yet made"))
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["checks"]}
    assert found["ok"] is True
    assert {"python", "training", "device", "cores", "memory", "disk", "sqlite", "port", "models"} <= rows.keys()
    assert rows["models"]["status"] == "warning"
    assert "smedje models pull" in rows["models"]["remedy"]
    assert all(row["remedy"] for row in rows.values() if row["status"] != "ok")
    assert not (tmp_path / "not yet made").exists()


def test_a_state_folder_that_cannot_be_written_fails_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A required row that fails makes the exit code 1, and its remedy names the setting."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SMEDJE_HOME", str(tmp_path / "file" / "home"))
    assert run(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "set SMEDJE_HOME" in out
    assert out.splitlines()[-1].startswith("this machine is not ready")
    assert home_row(tmp_path).status == "ok"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_old_python_and_old_sqlite_are_told() -> None:
    """An interpreter that is too old fails; a SQLite with the write-ahead-log fault is a warning."""
    assert python_row((3, 10, 9)).status == "failed"
    assert python_row((3, 11, 0)).status == "ok"
    assert sqlite_row("3.40.1").status == "warning"
    assert sqlite_row("3.51.3").status == sqlite_row("3.60.0").status == "ok"


def test_models_are_listed_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    """Complete models are named; a manifest that cannot be read is a warning, not a crash."""
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    assert models_row(tmp_path).found == "none installed"
    write_manifest(folder, name="mine", source="test")
    assert (models_row(tmp_path).status, models_row(tmp_path).found) == ("ok", "mine")
    (folder / MANIFEST).write_text("{")
    assert models_row(tmp_path).status == "warning"


def test_the_disk_is_that_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    """A state folder that is not made yet is judged by the disk on which it will be."""
    free = shutil.disk_usage(tmp_path).free
    row = disk_row(tmp_path / "a" / "b")
    assert row.status == ("ok" if free >= 2_000_000_000 else "failed")


def write(folder: Path, files: dict[str, str]) -> Path:
    """A control group's folder with these files."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_cores_follow_the_containers_quota(tmp_path: Path, files: dict[str, str], most: int | None) -> None:
    """A quota in either form of control group limits the cores, never below one; without one all may be used."""
    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert usable_cores(write(tmp_path, files)) == (most or every)


def test_memory_follows_the_containers_limit(tmp_path: Path) -> None:
    """A limit in either form counts; "max" is none; and a machine has at least some memory and one core."""
    assert memory_limit(write(tmp_path / "new", {"memory.max": "1000000\n"})) == 1_000_000
    assert memory_limit(write(tmp_path / "old", {"memory/memory.limit_in_bytes": "2000000\n"})) == 2_000_000
    assert memory_limit(write(tmp_path / "none", {"memory.max": "max\n"})) is None
    used = {"memory.max": "9000\n", "memory.current": "8000\n", "memory.stat": "anon 6000\ninactive_file 500\n"}
    assert free_memory(write(tmp_path / "used", used)) == 1500
    older = {"limit_in_bytes": "9000\n", "usage_in_bytes": "9500\n", "stat": "total_inactive_file 400\n"}
    assert free_memory(write(tmp_path / "full", {f"memory/memory.{name}": text for name, text in older.items()})) == 0
    assert free_memory(tmp_path / "none") > 2**20
    machine = look()
    assert machine.cores >= 1
    assert 0 < machine.memory_free_bytes <= machine.memory_bytes
