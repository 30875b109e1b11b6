"""Reads a GGUF file's header and tensors. Knows the container, not what its values mean for a model.

The header is checked as it is read: every count is held against the bytes that are left, so a hostile file ends in a
clear error and never in a large allocation. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smedje.errors import InvalidRequest

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_KEYS = 4096
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 4
MAX_KEY_BYTES = 65_535


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: its name, ggml type number, shape with rows first, and where its bytes lie in the file."""

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file. values: metadata key -> number, text, bool or list of one of them."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, GgufTensor]


class _Cursor:
    """A position in the mapped file; refuses to read past its end."""

    def __init__(self, path: Path, view: memoryview) -> None:
        self.path = path
        self.view = view
        self.at = 0

    def take(self, count: int) -> memoryview:
        if count > len(self.view) - self.at:
            raise broken(self.path, f"at byte {self.at:,} it claims {count:,} more bytes than the file has")
        self.at += count
        return self.view[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, limit: int | None = None) -> str:
        size = self.number("Q")
        if limit is not None and size > limit:
            raise broken(self.path, f"at byte {self.at:,} a name claims {size:,} bytes")
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError:
            raise broken(self.path, f"the text before byte {self.at:,} is not UTF-8") from None


def read_gguf(path: Path) -> GgufFile:
    """The checked header of a little-endian GGUF file of version 2 or 3. Raises InvalidRequest naming what is wrong."""
    if path.stat().st_size < 24:
        raise broken(path, "it is too short to hold a header")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            return _read_header(_Cursor(path, view), path.stat().st_size)
        finally:
            view.release()


def read_tensor(file: GgufFile, tensor: GgufTensor) -> Any:
    """One tensor as a float32 array of `tensor.shape`, de-quantised. Only its bytes are read."""
    import numpy
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize, quant_shape_to_byte_shape

    kind = GGMLQuantizationType(tensor.type)
    raw = numpy.fromfile(file.path, dtype=numpy.uint8, count=tensor.bytes, offset=tensor.offset)
    direct = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}.get(kind.name)
    if direct:
        return raw.view(direct).reshape(tensor.shape).astype(numpy.float32)
    try:
        # Damaged scales overflow; that shows as numbers that are not finite, and is no warning to print.
        with numpy.errstate(all="ignore"):
            values = dequantize(raw.reshape(quant_shape_to_byte_shape(tensor.shape, kind)), kind)
    except NotImplementedError:
        raise broken(file.path, f"tensor {tensor.name!r} has type {kind.name}, which cannot be de-quantised") from None
    return values.reshape(tensor.shape).astype(numpy.float32, copy=False)


def broken(path: Path, why: str) -> InvalidRequest:
    """The error for a GGUF file that cannot be used."""
    return InvalidRequest(
        f"{path.name} cannot be read as a GGUF model: {why}. Fetch the file again, or choose another one.",
        code="invalid_gguf",
        param=path.name,
    )


def _read_header(cursor: _Cursor, size: int) -> GgufFile:
    path = cursor.path
    if bytes(cursor.take(4)) != b"GGUF":
        raise broken(path, "it does not begin with the letters GGUF")
    version = cursor.number("I")
    if version not in (2, 3):
        why = "it is big-endian" if version & 0xFFFF == 0 else f"its version is {version}; versions 2 and 3 are known"
        raise broken(path, why)
    tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise broken(path, f"its header claims {tensor_count:,} tensors and {key_count:,} keys")
    values: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text(MAX_KEY_BYTES)
        if key in values:
            raise broken(path, f"the key {key!r} comes twice")
        values[key] = _read_value(cursor, cursor.number("I"))
    entries = [_read_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise broken(path, f"its alignment is {alignment!r}, which is not a power of two")
    start = cursor.at + -cursor.at % alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        count = _tensor_bytes(path, name, shape, kind)
        if name in tensors:
            raise broken(path, f"the tensor {name!r} comes twice")
        if offset % alignment or start + offset + count > size:
            raise broken(path, f"the tensor {name!r} does not lie inside the file")
        tensors[name] = GgufTensor(name, kind, shape, start + offset, count)
    return GgufFile(path, values, tensors)


def _read_value(cursor: _Cursor, kind: int) -> Any:
    if kind == STRING:
        return cursor.text()
    if kind == ARRAY:
        item, count = cursor.number("I"), cursor.number("Q")
        if item == STRING:
            # A text takes at least the 8 bytes of its length.
            if count > (len(cursor.view) - cursor.at) // 8:
                raise broken(cursor.path, f"at byte {cursor.at:,} a list claims {count:,} texts")
            return [cursor.text() for _ in range(count)]
        if item in SCALARS:
            raw = cursor.take(count * struct.calcsize("<" + SCALARS[item]))
            return list(struct.unpack(f"<{count}{SCALARS[item]}", raw))
        raise broken(cursor.path, f"at byte {cursor.at:,} a list has items of type {item}")
    if kind in SCALARS:
        return cursor.number(SCALARS[kind])
    raise broken(cursor.path, f"at byte {cursor.at:,} a value has the unknown type {kind}")


def _read_tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text(MAX_KEY_BYTES)
    dimensions = cursor.number("I")
    if not 0 < dimensions <= MAX_DIMENSIONS:
        raise broken(cursor.path, f"the tensor {name!r} claims {dimensions:,} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))
    return name, shape[::-1], cursor.number("I"), cursor.number("Q")


def _tensor_bytes(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise broken(path, f"the tensor {name!r} has the unknown type {kind}") from None
    if not all(shape) or shape[-1] % block:
        raise broken(path, f"the tensor {name!r} has the shape {shape}, which its type does not allow")
    count = 1
    for n in shape:
        count *= n
    return int(count // block * size)
