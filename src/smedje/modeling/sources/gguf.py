"""A model from a GGUF file on this machine. Knows where the file is; the converter knows what is in it."""

import math
from collections.abc import Iterator
from pathlib import Path

from smedje.errors import NotFound
from smedje.modeling.convert_gguf import convert_gguf
from smedje.modeling.folder import check_room
from smedje.modeling.gguf_file import read_gguf
from smedje.modeling.sources.progress import PullProgress


def fetch_gguf(path: Path, folder: Path) -> Iterator[PullProgress]:
    """Convert the file into `folder`. Raises NotFound when it is not there, and what `convert_gguf` raises."""
    if not path.is_file():
        raise NotFound(f"There is no file {path}. Check the path.", code="model_not_found", param="model")
    needed = sum(4 * math.prod(tensor.shape) for tensor in read_gguf(path).tensors.values())
    check_room(folder, name=path.name, needed=needed)
    yield from convert_gguf(path, folder)
