"""`smedje doctor`: whether this machine can do the work, row by row, each failure with its remedy.

Knows what is needed and how to look for it; imports no compute library to find out.
"""

import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import typer

from smedje.cli import exits
from smedje.cli.output import JsonFlag, print_json, print_table, say, size

TRAINING_PACKAGES = ("torch", "safetensors", "numpy", "gguf")
# SQLite before this can corrupt a WAL database that two connections write (https://sqlite.org/wal.html#walresetbug).
SQLITE_SAFE = (3, 51, 3)
DISK_NEEDED = 2_000_000_000
MEMORY_NEEDED = 3_000_000_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was looked at. status: ok, warning or failed. required: without it nothing runs."""

    name: str
    status: str
    found: str
    remedy: str = ""
    required: bool = True


def doctor(as_json: JsonFlag = False) -> None:
    """Check this machine and say what to do about what is missing. Exit code 1 when a required check fails."""
    from smedje.settings import load_settings

    rows = list(examine(load_settings().home))
    good = not any(row.status == "failed" for row in rows)
    if as_json:
        print_json({"ok": good, "checks": [asdict(row) for row in rows]})
    else:
        table = [(row.name, row.status, row.found, row.remedy) for row in rows]
        print_table(("CHECK", "STATUS", "FOUND", "WHAT TO DO"), table, empty="")
        say("this machine is ready" if good else "this machine is not ready; see WHAT TO DO")
    if not good:
        raise typer.Exit(exits.FAILED)


def examine(home: Path) -> Iterator[Row]:
    """Every check, in the order in which a person would mend them."""
    yield python_row(sys.version_info[:3])
    yield _training_row()
    yield from _machine_rows()
    yield home_row(home)
    yield disk_row(home)
    yield sqlite_row(_sqlite_version())
    yield _port_row()
    yield models_row(home)
    yield location_row(home)


def python_row(found: tuple[int, ...]) -> Row:
    """Whether the interpreter is new enough."""
    text = ".".join(map(str, found))
    if found >= (3, 11):
        return Row(name="python", status="ok", found=f"{text} ({platform.machine()})")
    return Row(name="python", status="failed", found=text, remedy="install Python 3.11 or newer")


def home_row(home: Path) -> Row:
    """Whether the state folder can be written."""
    nearest = _existing(home)
    try:
        probe = nearest / f".smedje-probe-{platform.node()}"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        remedy = "set SMEDJE_HOME to a folder of yours"
        return Row(name="state folder", status="failed", found=f"{home}: {problem.strerror}", remedy=remedy)
    return Row(name="state folder", status="ok", found=str(home))


def disk_row(home: Path) -> Row:
    """Whether the state folder's disk has room for a model and its runs."""
    free = shutil.disk_usage(_existing(home)).free
    if free >= DISK_NEEDED:
        return Row(name="disk", status="ok", found=f"{size(free)} free")
    remedy = f"free {size(DISK_NEEDED - free)}, or set SMEDJE_HOME to a folder on a larger disk"
    return Row(name="disk", status="failed", found=f"{size(free)} free", remedy=remedy)


def sqlite_row(found: str) -> Row:
    """Whether SQLite keeps its promises in write-ahead mode."""
    numbers = tuple(int(part) for part in found.split("."))
    if numbers >= SQLITE_SAFE:
        return Row(name="sqlite", status="ok", found=found)
    return Row(
        name="sqlite",
        status="warning",
        found=found,
        remedy="pip install pysqlite3 for a newer SQLite, or set SMEDJE_DATABASE_URL to a PostgreSQL database",
        required=False,
    )


def models_row(home: Path) -> Row:
    """Which base models are installed."""
    from smedje.errors import SmedjeError
    from smedje.modeling.folder import installed_models

    try:
        names = [manifest.name for manifest in installed_models(home)]
    except SmedjeError as problem:
        remedy = "remove that folder and pull the model again"
        return Row(name="models", status="warning", found=problem.message, remedy=remedy, required=False)
    if names:
        return Row(name="models", status="ok", found=", ".join(names), required=False)
    remedy = "smedje models pull smollm2-135m-instruct"
    return Row(name="models", status="warning", found="none installed", remedy=remedy, required=False)


def location_row(home: Path) -> Row:
    """What this machine, as a place where jobs run, can train of what is installed."""
    from smedje.errors import SmedjeError
    from smedje.services.abilities import abilities
    from smedje.settings import load_settings

    try:
        about, name = abilities(home), load_settings().location
    except SmedjeError as problem:
        return Row(name="location", status="warning", found=problem.message, remedy="see above", required=False)
    able = [one["name"] for one in about["models"] if one["installed"] and one["reason"] is None]
    found = f"{name}: {', '.join(about['methods'])} on {', '.join(about['devices'])}; {', '.join(able) or 'no model'}"
    return Row(name="location", status="ok", found=found, required=False)


def _training_row() -> Row:
    missing = [name for name in TRAINING_PACKAGES if find_spec(name) is None]
    if missing:
        remedy = "python bootstrap.py setup, or pip install 'smedje[train]'"
        return Row(name="training", status="failed", found=f"missing: {', '.join(missing)}", remedy=remedy)
    try:
        found = f"torch {version('torch')}"
    except PackageNotFoundError:
        found = "torch of unknown version"
    return Row(name="training", status="ok", found=found)


def _machine_rows() -> Iterator[Row]:
    from smedje.cli.machine import look

    machine = look()
    yield Row(name="device", status="ok", found=machine.gpu or "CPU, no NVIDIA GPU", required=False)
    yield Row(name="cores", status="ok", found=str(machine.cores), required=False)
    found = f"{size(machine.memory_free_bytes)} free of {size(machine.memory_bytes)}"
    if machine.memory_free_bytes >= MEMORY_NEEDED:
        yield Row(name="memory", status="ok", found=found, required=False)
    else:
        remedy = "close other programs; fine-tuning the smallest model needs about 3 GB"
        yield Row(name="memory", status="warning", found=found, remedy=remedy, required=False)


def _sqlite_version() -> str:
    if find_spec("pysqlite3") is not None:
        from pysqlite3 import dbapi2

        return str(dbapi2.sqlite_version)
    import sqlite3

    return sqlite3.sqlite_version


def _port_row() -> Row:
    from smedje.cli.serve import DEFAULT_PORT

    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", DEFAULT_PORT)) == 0
    if not taken:
        return Row(name="port", status="ok", found=f"{DEFAULT_PORT} is free", required=False)
    remedy = "if that is not your smedje server, use: smedje serve --port 0"
    return Row(name="port", status="warning", found=f"{DEFAULT_PORT} is in use", remedy=remedy, required=False)


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
