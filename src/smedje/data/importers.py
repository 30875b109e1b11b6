"""Other formats to chat lines: ShareGPT, Alpaca, prompt and completion, tables, folders; with an account of every row.

Parquet is not read: it needs a library of its own; write JSON Lines from it first. Knows formats; knows no storage.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from smedje.data.lines import read_lines
from smedje.data.parse import parse_line
from smedje.errors import InvalidRequest

KEPT_DROPS = 1000
FORMATS = ("auto", "chat", "sharegpt", "alpaca", "prompt-completion", "columns")
ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
_USED: Mapping[str, set[str | None]] = {
    "chat": {"messages", "tools", "functions", "parallel_tool_calls"},
    "sharegpt": {"conversations", "conversation", "system"},
    "alpaca": {"instruction", "input", "output", "system", "history"},
    "prompt-completion": {"prompt", "completion", "system"},
}


class Refused(Exception):
    """A row that cannot be a chat example; the text says why."""


@dataclass(frozen=True)
class Dropped:
    """A row that was left out: file name, row (from 1), why."""

    file: str
    row: int
    reason: str


@dataclass(frozen=True)
class Import:
    """The account: every row is either kept or dropped with a reason.

    formats: rows of each format. reasons: dropped rows of each reason; dropped: the first thousand of them.
    unused_columns: in how many rows a column stood that the chat format has no place for.
    """

    rows: int
    kept: int
    formats: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    unused_columns: Mapping[str, int] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One sentence for people."""
        why = ", ".join(f"{number} x {reason}" for reason, number in self.reasons.items())
        return f"{self.kept} of {self.rows} rows kept" + (f"; dropped: {why}." if why else ".")


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """Which columns hold what, for tables and flat rows. assistant is the answer."""

    user: str
    assistant: str
    system: str | None = None


def import_path(
    source: Path, write: Callable[[bytes], object], *, form: str = "auto", columns: Mapped | None = None
) -> Import:
    """Convert a file, or every file of a folder, to chat lines for `write`.

    form: one of FORMATS; auto looks at each row. columns: needed for "columns", and for CSV and TSV whose columns are
    not those of another format. Raises InvalidRequest for a format or a file ending that is not known.
    """
    if form not in FORMATS:
        raise InvalidRequest(f"There is no format {form!r}. Formats: {', '.join(FORMATS)}.", code="unknown_format")
    if form == "columns" and columns is None:
        raise InvalidRequest("The format columns needs to know the columns: user and assistant.", code="missing_field")
    rows = kept = 0
    formats: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    dropped: list[Dropped] = []
    for name, number, value in _rows(source):
        rows += 1
        try:
            found = _format_of(value, form, columns)
            formats[found] += 1
            line = _to_line(value, found, columns)
            unused.update(_unused(value, found, columns))
        except Refused as refusal:
            reasons[str(refusal)] += 1
            if len(dropped) < KEPT_DROPS:
                dropped.append(Dropped(name, number, str(refusal)))
            continue
        write(line + b"\n")
        kept += 1
    return Import(rows, kept, dict(formats), dict(reasons.most_common()), tuple(dropped), dict(unused))


def _rows(source: Path) -> Iterator[tuple[str, int, Any]]:
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        # A dataset folder's own descriptions are no rows.
        files = [path for path in files if path.name not in ("dataset_info.json", "state.json", "dataset_infos.json")]
    else:
        files = [source]
    if not files:
        raise InvalidRequest(
            f"{source} holds no file that ends in {', '.join(ENDINGS)}. Parquet is not read; write JSON Lines from it.",
            code="nothing_to_import",
        )
    for path in files:
        for number, value in enumerate(_values(path), 1):
            yield path.name, number, value


def _values(path: Path) -> Iterator[Any]:
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="", errors="replace") as stream:
            yield from csv.DictReader(stream, delimiter="\t" if ending == ".tsv" else ",")
    elif ending == ".json" and _first_byte(path) == b"[":
        try:
            yield from msgspec.json.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), type=list[Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{path.name} is not valid JSON: {error}.", code="invalid_json") from error
    elif ending in ENDINGS:
        for line in read_lines(path):
            if not line.blank:
                yield Refused("line_too_large") if line.raw is None else _decoded(line.raw)
    else:
        raise InvalidRequest(
            f"{path.name} does not end in {', '.join(ENDINGS)}. Parquet is not read; write JSON Lines from it.",
            code="unknown_format",
        )


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _decoded(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refused("invalid_json")


def _format_of(value: Any, form: str, columns: Mapped | None) -> str:
    if isinstance(value, Refused):
        raise value
    if not isinstance(value, dict):
        raise Refused("not an object")
    if form != "auto":
        return form
    if columns is not None:
        return "columns"
    for name, keys in (
        ("chat", ("messages",)),
        ("sharegpt", ("conversations",)),
        ("sharegpt", ("conversation",)),
        ("alpaca", ("instruction", "output")),
        ("prompt-completion", ("prompt", "completion")),
    ):
        if all(key in value for key in keys):
            return name
    raise Refused("no known format; map its columns")


def _to_line(value: dict[str, Any], form: str, columns: Mapped | None) -> bytes:
    if form == "chat":
        body = {key: value[key] for key in value if key in _USED["chat"]}
    elif form == "sharegpt":
        body = {"messages": _sharegpt(value)}
    elif form == "alpaca":
        body = {"messages": _alpaca(value)}
    elif form == "prompt-completion":
        body = {"messages": _prompt_completion(value)}
    else:
        assert columns is not None, "checked at the start"
        body = {"messages": _mapped(value, columns)}
    raw = msgspec.json.encode(body)
    errors = [problem for problem in parse_line(raw, 1).problems if problem.severity == "error"]
    if errors:
        raise Refused(errors[0].code)
    return raw


def _sharegpt(value: dict[str, Any]) -> list[dict[str, Any]]:
    turns = value.get("conversations", value.get("conversation"))
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Refused("conversations is not a list of objects")
    messages = _system(value)
    for turn in turns:
        role = turn.get("from", turn.get("role"))
        if not isinstance(role, str) or role not in _SHAREGPT_ROLES:
            raise Refused("a speaker that is neither human, gpt nor system")
        messages.append({"role": _SHAREGPT_ROLES[role], "content": turn.get("value", turn.get("content"))})
    return messages


def _alpaca(value: dict[str, Any]) -> list[dict[str, Any]]:
    messages = _system(value)
    for turn in value.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise Refused("history is not a list of pairs")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    parts = [part for part in (value.get("instruction"), value.get("input")) if part not in (None, "")]
    if not all(isinstance(part, str) for part in parts):
        raise Refused("instruction or input is not a text")
    return [*messages, {"role": "user", "content": "\n\n".join(parts)}, _answer(value.get("output"))]


def _prompt_completion(value: dict[str, Any]) -> list[dict[str, Any]]:
    prompt, completion = value.get("prompt"), value.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return [*prompt, *completion]
    return [*_system(value), {"role": "user", "content": prompt}, _answer(completion)]


def _mapped(value: dict[str, Any], columns: Mapped) -> list[dict[str, Any]]:
    for name in (columns.user, columns.assistant):
        if name not in value:
            raise Refused(f"no column {name}")
    system = value.get(columns.system) if columns.system else None
    messages = [{"role": "system", "content": str(system)}] if system else []
    user, said = value[columns.user], value[columns.assistant]
    texts = ["" if text is None else text if isinstance(text, str) else str(text) for text in (user, said)]
    return [*messages, {"role": "user", "content": texts[0]}, _answer(texts[1])]


def _system(value: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": value["system"]}] if value.get("system") else []


def _answer(text: Any) -> dict[str, Any]:
    # Old completion files begin answers with a space, which belonged to their tokens.
    return {"role": "assistant", "content": text.strip() if isinstance(text, str) else text}


def _unused(value: dict[str, Any], form: str, columns: Mapped | None) -> list[str]:
    used = {columns.user, columns.assistant, columns.system} if form == "columns" and columns else _USED[form]
    return [str(name) for name in value if name not in used]
