"""A model's files from a folder on this machine, for instance one that another tool has saved. Knows copying only."""

import os
from collections.abc import Iterator
from pathlib import Path

from smedje.errors import InvalidRequest, NotFound
from smedje.modeling.folder import check_room
from smedje.modeling.sources.files import check_config, settings_files, weight_files
from smedje.modeling.sources.progress import PullProgress
from smedje.modeling.tensor_file import read_tensor_header

CHUNK = 16 << 20


def fetch_folder(origin: Path, folder: Path) -> Iterator[PullProgress]:
    """Copy configuration, tokenizer, licence and safetensors of the model in `origin` into `folder`.

    Files are copied, not linked: what is done to the origin later must not change the installed model. Raises NotFound
    when there is no such folder, InvalidRequest when it holds no safetensors model.
    """
    if not origin.is_dir():
        raise NotFound(f"There is no folder {origin}. Check the path.", code="model_not_found", param="model")
    where = str(origin)
    small = settings_files((entry.name for entry in origin.iterdir() if entry.is_file()), where=where)
    for name in small:
        yield from _copy(origin / name, folder / name)
    check_config(folder, where=where)
    weights = weight_files(folder, where=where)
    for name in weights:
        if not (origin / name).is_file():
            raise InvalidRequest(
                f"{where} lists {name} in its index and does not have it.", code="incomplete_model", param=name
            )
        read_tensor_header(origin / name)
    check_room(folder, name=where, needed=sum((origin / name).stat().st_size for name in weights))
    for name in weights:
        yield from _copy(origin / name, folder / name)


def _copy(origin: Path, target: Path) -> Iterator[PullProgress]:
    with origin.open("rb") as source, target.open("wb") as out:
        total = os.fstat(source.fileno()).st_size
        while chunk := source.read(CHUNK):
            out.write(chunk)
            yield PullProgress(stage="copying", file=target.name, bytes_done=out.tell(), bytes_total=total)
