"""Encoded rows kept on disk, so that a second run on the same data encodes nothing. Never wrong: what it is named by.

A name says which file's rows they are; a digest of everything that decides them stands inside: the file's bytes, the
tokenizer, the chat template with its variables and its date where it tells one, the longest example, what a row is,
and the code that encodes. A kept file that is damaged, or of another digest, is removed and made again. Knows arrays
and bytes; refuses to know what they are for. The least recently used go when there are too many bytes.
"""

from __future__ import annotations  # Python 3.11 cannot subscript array.array

import hashlib
import os
import sys
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import msgspec

from smedje.chat.tokenizer import ChatTokenizer
from smedje.data.classification import LabelledDataset
from smedje.data.encode import EncodedDataset
from smedje.data.preference import PreferenceDataset

MOST_BYTES = 2 * 2**30
FOLDER = "prepared"
SUFFIX = ".rows"
Dataset = EncodedDataset | PreferenceDataset | LabelledDataset
_TYPES: dict[str, type[Any]] = {one.__name__: one for one in (EncodedDataset, PreferenceDataset, LabelledDataset)}
_PACKAGES = (Path(__file__).parent, Path(__file__).parents[1] / "chat")


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line. rows: how the arrays belong together. arrays: type code and count of each, in order.

    sha256: of all bytes after this line.
    """

    sources: str
    rows: dict[str, Any]
    arrays: list[tuple[str, int]]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What decides encoded rows. file: SHA-256 of the data file. digest: SHA-256 of everything, the file included."""

    file: str
    digest: str


def sources_of(
    path: Path, tokenizer_file: Path, tokenizer: ChatTokenizer, *, today: str, options: Mapping[str, object]
) -> Sources:
    """The sources of the rows of `path`. options: whatever else decides them, as JSON values. today: ISO 8601."""
    import tokenizers

    with path.open("rb") as data, tokenizer_file.open("rb") as vocabulary:
        file, ids = (hashlib.file_digest(opened, "sha256").hexdigest() for opened in (data, vocabulary))
    template = tokenizer.template
    decides = {
        "file": file,
        "tokenizer": ids,
        "library": tokenizers.__version__,
        "template": template.source,
        "variables": dict(template.variables),
        "stop_ids": tokenizer.stop_ids,
        "eos_id": tokenizer.eos_id,
        "today": today if "strftime_now" in template.source else "",
        "options": dict(options),
        "code": _code(),
        "order": sys.byteorder,
    }
    text = msgspec.json.encode(decides, order="deterministic")
    return Sources(file=file, digest=hashlib.sha256(text).hexdigest())


def read_rows(cache: Path, sources: Sources) -> Dataset | None:
    """The kept rows of these sources, every byte checked; None when there are none that can be trusted."""
    path = _path(cache, sources)
    try:
        raw = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    found = _parse(raw, sources)
    if found is None:
        with suppress(OSError):
            path.unlink()
    return found


def keep_rows(cache: Path, sources: Sources, dataset: Dataset) -> None:
    """Keep rows for later runs. A disk that is full, or may not be written, costs the next run its time, not this."""
    arrays: list[array[Any]] = []
    layout = _taken_apart(dataset, arrays)
    body = b"".join(one.tobytes() for one in arrays)
    if len(body) > MOST_BYTES // 2:
        return
    header = _Header(
        sources=sources.digest,
        rows=layout,
        arrays=[(one.typecode, len(one)) for one in arrays],
        sha256=hashlib.sha256(body).hexdigest(),
    )
    path = _path(cache, sources)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.encode(header) + b"\n" + body)
        part.replace(path)
        clean(cache, most_bytes=MOST_BYTES)
    except OSError:
        with suppress(OSError):
            part.unlink()


def forget_rows(cache: Path, file: str) -> None:
    """Remove everything that was made of the data file with this SHA-256."""
    for path in (cache / FOLDER).glob(f"{file}-*"):
        with suppress(OSError):
            path.unlink()


def clean(cache: Path, *, most_bytes: int) -> None:
    """Remove the least recently used until the rest has at most so many bytes; and parts that nobody finished."""
    found: list[tuple[float, int, Path]] = []
    for path in (cache / FOLDER).iterdir():
        with suppress(OSError):
            seen = path.stat()
            found.append((seen.st_mtime, seen.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most_bytes:
            return
        with suppress(OSError):
            path.unlink()
        total -= size


def _path(cache: Path, sources: Sources) -> Path:
    return cache / FOLDER / f"{sources.file}-{sources.digest[:32]}{SUFFIX}"


def _parse(raw: bytes, sources: Sources) -> Dataset | None:
    head, _, body = raw.partition(b"\n")
    try:
        header = msgspec.json.decode(head, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if (header.sources, header.sha256) != (sources.digest, hashlib.sha256(body).hexdigest()):
        return None
    arrays: list[array[Any]] = []
    place = 0
    for code, count in header.arrays:
        arrays.append(array(code))
        end = place + count * arrays[-1].itemsize
        arrays[-1].frombytes(body[place:end])
        place = end
    found = _put_together(header.rows, arrays)
    return found if isinstance(found, Dataset) else None


def _taken_apart(value: Any, arrays: list[array[Any]]) -> dict[str, Any]:
    """A dataset as JSON, with its arrays apart: {"type", "fields"}, {"array": its place} or {"value"}."""
    if isinstance(value, array):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if is_dataclass(value):
        parts = {one.name: _taken_apart(getattr(value, one.name), arrays) for one in fields(value)}
        return {"type": type(value).__name__, "fields": parts}
    return {"value": value}


def _put_together(layout: Mapping[str, Any], arrays: Sequence[array[Any]]) -> Any:
    if "array" in layout:
        return arrays[layout["array"]]
    if "type" in layout:
        parts = {name: _put_together(part, arrays) for name, part in layout["fields"].items()}
        return _TYPES[layout["type"]](**parts)
    value = layout["value"]
    return tuple(value) if isinstance(value, list) else value


def _code() -> str:
    """A digest of the code that encodes, so that rows of another version are never used."""
    found = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted(package.glob("*.py")):
            found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
