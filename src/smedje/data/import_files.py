"""Files of other formats to rows: JSON Lines, JSON, CSV, TSV, Parquet, Arrow, and dataset folders with their splits.

Knows how rows lie in files; refuses to know what they mean.
"""

import csv
import gzip
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from smedje.data.import_rows import Refused
from smedje.data.lines import LONGEST_LINE, read_lines
from smedje.errors import InvalidRequest, Unavailable

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = ".gz"
BATCH_ROWS = 1000
# Words in a shard's path that name its split, as Hugging Face's dataset folders spell them.
SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_WORDS = re.compile(r"[a-z]+")
_BOM = b"\xef\xbb\xbf"

# Rows with their numbers from 1: lines of JSON Lines, else rows below the header.
Numbered = Iterator[tuple[int, Any]]


@dataclass(frozen=True)
class SourceRow:
    """A row of a file: its file's name, its number from 1, its value, or Refused with what is wrong with it."""

    file: str
    row: int
    value: Any


@dataclass(frozen=True)
class SourceFile:
    """A file to import. name: to show, below the folder where it lies in one. split: as its name says, if it does."""

    path: Path
    name: str
    split: str | None = None

    @property
    def ending(self) -> str:
        """What the name ends in, without `.gz`."""
        return Path(self.name.lower().removesuffix(PACKED)).suffix


def source_files(source: Path, *, split: str | None = None, name: str | None = None) -> list[SourceFile]:
    """The files of a folder in the order of their names, or the one file. name: of a single file, if not its own.

    split: only files of that split. Raises InvalidRequest for a folder with several splits when none was chosen: mixed
    they would let test rows be trained on; for one that has not the split; and for a file ending that is not known.
    """
    if not source.is_dir():
        found = [SourceFile(source, name or source.name)]
        if found[0].ending not in ENDINGS:
            raise InvalidRequest(
                f"{found[0].name} does not end in {', '.join(ENDINGS)} (or one of them with {PACKED}).",
                code="unknown_format",
            )
    else:
        inside = sorted(path for path in source.rglob("*") if path.is_file())
        named = [(path, path.relative_to(source)) for path in inside if path.name not in _DESCRIPTIONS]
        found = [
            SourceFile(path, str(relative), _split_of(relative))
            for path, relative in named
            if not any(part.startswith(".") for part in relative.parts)
            and SourceFile(path, relative.name).ending in ENDINGS
        ]
        if not found:
            raise InvalidRequest(f"{source} holds no file that ends in {', '.join(ENDINGS)}.", code="nothing_to_import")
    return _of_split(found, split)


def read_source(file: SourceFile) -> Iterator[SourceRow]:
    """Every row of a file. Raises InvalidRequest for a file that cannot be read at all, Unavailable for want of
    pyarrow."""
    try:
        for number, value in _READERS[file.ending](file):
            yield SourceRow(file.name, number, value)
    except (gzip.BadGzipFile, EOFError) as error:
        raise InvalidRequest(f"{file.name} is not whole: {error}.", code="unreadable_file") from error


def _split_of(relative: Path) -> str | None:
    """The split that a word in the path names; the word nearest to the end counts."""
    for part in reversed(relative.parts):
        words = _WORDS.findall(part.lower().partition(".")[0])
        for name, spellings in SPLITS.items():
            if any(word in spellings for word in words):
                return name
    return None


def _of_split(found: list[SourceFile], split: str | None) -> list[SourceFile]:
    names = sorted({file.split or "without a name" for file in found})
    if split is None:
        if len(names) > 1:
            raise InvalidRequest(
                f"The folder has the splits {', '.join(names)}. Import them one by one: choose a split.",
                code="split_needed",
                param="split",
            )
        return found
    chosen = [file for file in found if file.split == split]
    if not chosen:
        raise InvalidRequest(
            f"There is no split {split[:60]!r}. There is: {', '.join(names)}.", code="unknown_split", param="split"
        )
    return chosen


def _open(file: SourceFile) -> BinaryIO:
    packed = file.name.lower().endswith(PACKED)
    return gzip.open(file.path, "rb") if packed else file.path.open("rb")  # type: ignore[return-value]


def _jsonl(file: SourceFile) -> Numbered:
    with _open(file) as stream:
        for line in read_lines(stream):
            if not line.blank:
                yield line.number, Refused("line_too_large") if line.raw is None else _decoded(line.raw)


def _json(file: SourceFile) -> Numbered:
    """A list of rows, an object that holds one such list, or JSON Lines under another name."""
    with _open(file) as stream:
        raw = stream.read().removeprefix(_BOM).strip()
    if raw[:1] == b"{":
        first, _, rest = raw.partition(b"\n")
        if rest and not isinstance(_decoded(first), Refused):
            yield from ((n, _decoded(line)) for n, line in enumerate(raw.split(b"\n"), 1) if line.strip())
            return
    try:
        # Elements stay bytes until their turn, so that only one is in memory as values.
        if raw[:1] == b"[":
            elements = msgspec.json.decode(raw, type=list[msgspec.Raw])
        else:
            elements = _only_list(msgspec.json.decode(raw, type=dict[str, msgspec.Raw]), raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{file.name} is not valid JSON: {error}.", code="invalid_json") from error
    yield from ((number, _decoded(bytes(element))) for number, element in enumerate(elements, 1))


def _only_list(columns: dict[str, msgspec.Raw], raw: bytes) -> list[msgspec.Raw]:
    """The rows of an object with one list of objects, such as {"version": 1, "data": [...]}; else it is one row."""
    lists = [bytes(value) for value in columns.values() if bytes(value).lstrip()[:1] == b"["]
    known = {"messages", "conversations", "conversation", "mapping"} & columns.keys()
    return (
        msgspec.json.decode(lists[0], type=list[msgspec.Raw]) if len(lists) == 1 and not known else [msgspec.Raw(raw)]
    )


def _table(file: SourceFile) -> Numbered:
    # The standard library's reader stops at cells above 128 KiB unless told otherwise, for the whole process.
    csv.field_size_limit(LONGEST_LINE)
    with _open(file) as stream:
        # Bytes that are no UTF-8 become half surrogates here, so that the row can be told and is not changed silently.
        text = (raw.decode("utf-8", "surrogateescape") for raw in _without_bom(stream))
        rows = csv.reader(text, delimiter="\t" if file.ending == ".tsv" else ",")
        try:
            header = next(rows, [])
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise InvalidRequest(f"{file.name} has two columns {twice!r:.60}.", code="duplicate_column")
            for number, cells in enumerate((row for row in rows if row), 1):
                yield number, _cells(header, cells)
        except csv.Error as error:
            raise InvalidRequest(f"{file.name}, line {rows.line_num}: {error}.", code="unreadable_file") from error


def _without_bom(stream: BinaryIO) -> Iterator[bytes]:
    for number, raw in enumerate(stream):
        yield raw.removeprefix(_BOM) if number == 0 else raw


def _cells(header: list[str], cells: list[str]) -> Any:
    if len(cells) > len(header):
        return Refused("more cells than columns")
    if any(0xDC80 <= ord(letter) <= 0xDCFF for cell in cells for letter in cell):
        return Refused("invalid_utf8")
    return {**dict.fromkeys(header), **dict(zip(header, cells, strict=False))}


def _parquet(file: SourceFile) -> Numbered:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError:
        raise _no_pyarrow(file) from None
    try:
        with pq.ParquetFile(file.path) as table:
            yield from _batches(table.iter_batches(batch_size=BATCH_ROWS))
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidRequest(f"{file.name} is not a Parquet file: {error}.", code="unreadable_file") from error


def _arrow(file: SourceFile) -> Numbered:
    """A table as `datasets` saves it to disk: an Arrow stream."""
    try:
        import pyarrow as pa
    except ImportError:
        raise _no_pyarrow(file) from None
    try:
        with pa.memory_map(str(file.path)) as stream, pa.ipc.open_stream(stream) as batches:
            yield from _batches(batches)
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidRequest(f"{file.name} is not an Arrow stream: {error}.", code="unreadable_file") from error


def _batches(batches: Iterable[Any]) -> Numbered:
    rows = (row for batch in batches for row in batch.to_pylist())
    yield from ((number, without_nulls(row)) for number, row in enumerate(rows, 1))


def _no_pyarrow(file: SourceFile) -> Unavailable:
    return Unavailable(
        f"{file.name} needs pyarrow, which is not installed. Run: pip install 'smedje[parquet]'", code="extra_needed"
    )


def without_nulls(value: Any) -> Any:
    """Columnar files give every message every key, with null where there was none: those are taken out."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _decoded(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refused("invalid_json")


_READERS: Mapping[str, Callable[[SourceFile], Numbered]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
