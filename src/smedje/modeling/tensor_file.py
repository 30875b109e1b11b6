"""Writes and inspects safetensors files without holding a model in memory. Knows the file layout, not the models.

Layout: 8 bytes little-endian header length, a JSON header (name -> dtype, shape, data_offsets), then the data.
Source: https://github.com/huggingface/safetensors#format
"""

import json
import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from smedje.errors import InvalidRequest

if TYPE_CHECKING:
    from smedje.objects.store import ByteSink

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "U8": 1, "I8": 1, "BOOL": 1}
ITEM_BYTES |= {"I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}
MAX_HEADER_BYTES = 100_000_000


class TensorWriter:
    """A safetensors file in the making that takes fp32 tensors one after another, in the order of `shapes`.

    Use it with `with`; missing tensors are noticed on leaving, and a file at a path is synced. A sink is only written
    to. Only one tensor is in memory.
    """

    def __init__(self, target: "Path | ByteSink", shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._expected = iter(shapes.items())
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in shapes.items():
            size = 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file: BufferedWriter | None = None
        self._out: ByteSink
        if isinstance(target, Path):
            self._out = self._file = target.open("wb")
        else:
            self._out = target
        self._out.write(len(text).to_bytes(8, "little"))
        self._out.write(text)

    def write(self, name: str, array: Any) -> None:
        """Append one tensor, a float32 numpy array of the shape that was announced."""
        assert (name, array.shape) == next(self._expected, None), f"tensor {name} is out of order or shape"
        assert array.dtype.str == "<f4", f"tensor {name} is {array.dtype}, not float32"
        self._out.write(memoryview(array).cast("B") if array.flags["C_CONTIGUOUS"] else array.tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._file or nullcontext():
            if kind is None:
                assert next(self._expected, None) is None, "tensors are missing"
                if self._file is not None:
                    self._file.flush()
                    os.fsync(self._file.fileno())


def read_tensor_header(path: Path) -> dict[str, Any]:
    """The checked header of a safetensors file: name -> {dtype, shape, data_offsets}, metadata left out.

    Raises InvalidRequest naming the file when the header is malformed, or its offsets do not fill the file exactly.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise _broken(path, f"its header claims {length:,} bytes")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise _broken(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    spans = sorted(_span(path, name, entry) for name, entry in header.items())
    end = 0
    for begin, stop, name in spans:
        if begin != end:
            raise _broken(path, f"tensor {name!r} overlaps another or leaves a gap")
        end = stop
    if end != size - 8 - length:
        raise _broken(path, f"it holds {size - 8 - length:,} bytes of data and its header describes {end:,}")
    return header


def _span(path: Path, name: str, entry: object) -> tuple[int, int, str]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            whole = all(type(n) is int and n >= 0 for n in shape)
            if dtype in ITEM_BYTES and whole and begin >= 0 and end - begin == ITEM_BYTES[dtype] * math.prod(shape):
                return begin, end, name
    raise _broken(path, f"the entry of tensor {name!r} is wrong")


def _broken(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path.name} is not a sound safetensors file: {why}. Fetch the file again from its publisher.",
        code="invalid_model_file",
        param=path.name,
    )
