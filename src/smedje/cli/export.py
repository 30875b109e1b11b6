"""`smedje models export`: a model as files that other programs read.

The adapter and the card come from the server; folding them into the base model happens on this machine, in a process of
its own, because the command line loads no compute library.
"""

import shutil
import subprocess
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from smedje.cli.output import JsonFlag, note, print_json, say, size
from smedje.domain.catalog import FULL_WEIGHTS_FILE
from smedje.errors import Conflict, InternalError, InvalidRequest
from smedje.objects.local_files import lent_folder

FINE_TUNED = "ft:"


class ExportFormat(StrEnum):
    """What is written."""

    ADAPTER = "adapter"
    MERGED = "merged"
    GGUF = "gguf"


class NumberType(StrEnum):
    """How numbers are stored."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"


def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A fine-tuned model, a checkpoint or a base model.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, or for gguf the .gguf file.")],
    kind: Annotated[ExportFormat, typer.Option("--format", help="What to write.")] = ExportFormat.ADAPTER,
    number_type: Annotated[
        NumberType | None, typer.Option("--type", help="How numbers are stored: f32, or f16 for gguf, unless given.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a model as a PEFT adapter, a merged model folder, or a GGUF file with an Ollama Modelfile."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Conflict(f"{out} exists already. Name another place.", code="target_not_empty", param="OUT")
    tuned = name.startswith(FINE_TUNED)
    if kind is ExportFormat.ADAPTER and not tuned:
        raise InvalidRequest(f"{name} is a base model and has no adapter.", code="not_fine_tuned", param="NAME")
    if kind is ExportFormat.ADAPTER and number_type not in (None, NumberType.F32):
        raise InvalidRequest("An adapter is kept in f32. Leave --type out.", code="invalid_value", param="--type")
    if kind is ExportFormat.GGUF and number_type is NumberType.BF16:
        raise InvalidRequest("gguf takes f32 or f16.", code="invalid_value", param="--type")
    with lent_folder(Path(tempfile.gettempdir()), prefix="smedje-export-") as adapter:
        base = _fetch(name, adapter) if tuned else name
        if kind is ExportFormat.ADAPTER and (adapter / FULL_WEIGHTS_FILE).exists():
            raise InvalidRequest(
                f"All weights of {name} were tuned, so it has no adapter. Export it as merged or gguf.",
                code="not_an_adapter",
                param="--format",
            )
        if kind is ExportFormat.ADAPTER:
            shutil.copytree(adapter, out, dirs_exist_ok=True)
        else:
            default = NumberType.F16 if kind is ExportFormat.GGUF else NumberType.F32
            _convert(kind, base, out, adapter if tuned else None, number_type=number_type or default, name=name)
            if tuned:
                shutil.copyfile(adapter / "README.md", _folder(kind, out) / "README.md")
    found = sorted(_folder(kind, out).iterdir()) if kind is not ExportFormat.GGUF else [out, out.parent / "Modelfile"]
    if as_json:
        files = [{"path": str(path), "bytes": path.stat().st_size} for path in found if path.is_file()]
        print_json({"object": "export", "model": name, "format": kind.value, "base_model": base, "files": files})
        return
    for path in found:
        say(f"{path}  {size(path.stat().st_size)}")


def _folder(kind: ExportFormat, out: Path) -> Path:
    return out.parent if kind is ExportFormat.GGUF else out


def _fetch(name: str, folder: Path) -> str:
    """Download the adapter and the card; the base model's name."""
    from smedje.cli.client import open_client, segment

    with open_client() as client:
        listed: dict[str, Any] = client.get(f"/api/models/{segment(name)}/files")
        for file in listed["data"]:
            plain = Path(file["name"]).name
            with (folder / plain).open("wb") as target:
                for piece in client.download(f"/api/models/{segment(name)}/files/{segment(plain)}"):
                    target.write(piece)
    return str(listed["base_model"])


def _convert(
    kind: ExportFormat, base: str, out: Path, adapter: Path | None, *, number_type: NumberType, name: str
) -> None:
    from smedje.modeling.folder import installed_folder
    from smedje.settings import load_settings

    folder = installed_folder(load_settings().home, base)
    command = [sys.executable, "-m", "smedje.modeling.export", kind.value, str(folder), str(out)]
    command += ["--type", number_type.value, "--name", name]
    if adapter is not None:
        command += ["--adapter", str(adapter)]
    note(f"writing {out}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        kind_of = InvalidRequest if done.returncode == 1 and len(said) == 1 else InternalError
        raise kind_of(f"The export failed: {said[-1]}", code="export_failed")
