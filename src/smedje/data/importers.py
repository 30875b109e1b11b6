"""Other formats to chat lines, with an account of every row: which became which line, which did not and why.

Knows the formats' names; how rows lie in files is in import_files.py, what they mean in import_rows.py.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from smedje.data.chatgpt import chatgpt_row, is_chatgpt
from smedje.data.import_files import SourceFile, SourceRow, read_source, source_files
from smedje.data.import_rows import Mapped, Refused, Row, convert_row, format_of, unused
from smedje.data.lines import Line
from smedje.data.parse import parse_line
from smedje.data.preference import parse_pair
from smedje.errors import InvalidRequest

__all__ = ["FORMATS", "Account", "Dropped", "Import", "Mapped", "Taken", "import_path", "plan_import", "take_rows"]

KEPT_DROPS = 1000
FORMATS = ("auto", "chat", "preference", "chatgpt", "sharegpt", "alpaca", "prompt-completion", "columns")
_PAIRS = ("preference", "chosen-rejected")


@dataclass(frozen=True)
class Dropped:
    """A row that was left out, or of which something was: file name, row (from 1), why."""

    file: str
    row: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What became of one source row. line: its bytes without line end, None when it was dropped for `reason`.

    left_out: pieces that the line has not, one reason each. columns: that held something and have no place in it.
    """

    file: str
    row: int
    form: str = ""
    line: bytes | None = None
    reason: str = ""
    left_out: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def to_dict(self, line: int | None) -> dict[str, Any]:
        """The row's entry in the account. line: number of its line in the new file."""
        entry: dict[str, Any] = {"file": self.file, "row": self.row}
        entry |= {"dropped": self.reason} if self.line is None else {"line": line}
        if self.left_out or self.columns:
            entry["left_out"] = [*self.left_out, *(f"the column {name}" for name in self.columns)]
        return entry


@dataclass(frozen=True)
class Import:
    """The account: every row is either kept or dropped with a reason.

    formats: rows of each format. reasons: dropped rows of each reason; dropped: the first thousand of them.
    unused_columns: in how many rows a column held something that the chat format has no place for.
    left_out: pieces of kept rows that are not in their lines, by reason; trimmed: the first thousand such rows.
    """

    rows: int
    kept: int
    formats: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    unused_columns: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    trimmed: tuple[Dropped, ...] = ()

    @property
    def summary(self) -> str:
        """One or two sentences for people."""
        why = ", ".join(f"{number} x {reason}" for reason, number in self.reasons.items())
        pieces = ", ".join(f"{number} x {reason}" for reason, number in self.left_out.items())
        text = f"{self.kept} of {self.rows} rows kept" + (f"; dropped: {why}." if why else ".")
        return text + (f" Left out of kept rows: {pieces}." if pieces else "")


@dataclass
class Account:
    """Adds up what became of the rows."""

    rows: int = 0
    kept: int = 0
    _formats: Counter[str] = field(default_factory=Counter)
    _reasons: Counter[str] = field(default_factory=Counter)
    _left_out: Counter[str] = field(default_factory=Counter)
    _unused: Counter[str] = field(default_factory=Counter)
    _dropped: list[Dropped] = field(default_factory=list)
    _trimmed: list[Dropped] = field(default_factory=list)

    def add(self, one: Taken) -> None:
        """The next row."""
        self.rows += 1
        if one.form:
            self._formats[one.form] += 1
        if one.line is None:
            self._reasons[one.reason] += 1
            if len(self._dropped) < KEPT_DROPS:
                self._dropped.append(Dropped(one.file, one.row, one.reason))
            return
        self.kept += 1
        self._left_out.update(one.left_out)
        self._unused.update(one.columns)
        if one.left_out and len(self._trimmed) < KEPT_DROPS:
            self._trimmed.append(Dropped(one.file, one.row, ", ".join(dict.fromkeys(one.left_out))))

    def result(self) -> Import:
        """The account so far."""
        return Import(
            self.rows,
            self.kept,
            dict(self._formats),
            dict(self._reasons.most_common()),
            tuple(self._dropped),
            dict(self._unused),
            dict(self._left_out.most_common()),
            tuple(self._trimmed),
        )


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """What is imported and how: files in order, format, columns."""

    files: tuple[SourceFile, ...]
    form: str
    columns: Mapped | None


def plan_import(
    source: Path,
    *,
    form: str = "auto",
    columns: Mapped | None = None,
    split: str | None = None,
    name: str | None = None,
) -> ImportPlan:
    """What importing `source` would read. form: one of FORMATS; auto looks at each row.

    columns: needed for "columns", and for tables whose columns are not those of another format. split: of a dataset
    folder. name: of the file, when its path does not tell. Raises InvalidRequest for what is not known.
    """
    if form not in FORMATS:
        raise InvalidRequest(
            f"There is no format {form[:60]!r}. Formats: {', '.join(FORMATS)}.", code="unknown_format", param="format"
        )
    if form == "columns" and columns is None:
        raise InvalidRequest(
            "The format columns needs to know the columns: user and assistant, or messages.",
            code="missing_field",
            param="columns",
        )
    return ImportPlan(files=tuple(source_files(source, split=split, name=name)), form=form, columns=columns)


def take_rows(plan: ImportPlan) -> Iterator[Taken]:
    """What becomes of every row, in order. Raises what `read_source` raises."""
    pairs: bool | None = None
    for file in plan.files:
        for row in read_source(file):
            one = take_row(row, plan)
            if one.line is not None:
                pairs = (one.form in _PAIRS) if pairs is None else pairs
                if pairs != (one.form in _PAIRS):
                    why = "a chat example among preference pairs" if pairs else "a preference pair among chat examples"
                    one = Taken(file=one.file, row=one.row, form=one.form, reason=why)
            yield one


def import_path(
    source: Path, write: Callable[[bytes], object], *, form: str = "auto", columns: Mapped | None = None
) -> Import:
    """Hand the lines of a file or folder to `write`; the account of all rows."""
    return import_rows(take_rows(plan_import(source, form=form, columns=columns)), write)


def import_rows(rows: Iterable[Taken], write: Callable[[bytes], object]) -> Import:
    """Hand the lines of rows to `write`; the account of them."""
    account = Account()
    for one in rows:
        account.add(one)
        if one.line is not None:
            write(one.line + b"\n")
    return account.result()


def take_row(source: SourceRow, plan: ImportPlan) -> Taken:
    """What becomes of one row by itself."""
    value, form = source.value, ""
    try:
        if isinstance(value, Refused):
            raise value
        if not isinstance(value, dict):
            raise Refused("not an object")
        form = _form_of(value, plan)
        row = chatgpt_row(value) if form == "chatgpt" else convert_row(value, form, plan.columns)
        line = _checked(row, form)
    except Refused as refusal:
        return Taken(file=source.file, row=source.row, form=form, reason=str(refusal))
    left = () if form == "chatgpt" else tuple(unused(value, form, plan.columns))
    return Taken(file=source.file, row=source.row, form=form, line=line, left_out=row.left_out, columns=left)


def _form_of(value: Mapping[str, Any], plan: ImportPlan) -> str:
    if plan.form == "chatgpt" and not is_chatgpt(value):
        raise Refused("not a ChatGPT conversation")
    if plan.form not in ("auto", "preference"):
        return plan.form
    form = "chatgpt" if plan.columns is None and is_chatgpt(value) else format_of(value, plan.columns)
    if plan.form == "preference" and form not in _PAIRS:
        raise Refused("not a preference pair")
    return form


def _checked(row: Row, form: str) -> bytes:
    """The line's bytes. Raises Refused with the code of the first thing that keeps it from being trained."""
    try:
        raw = msgspec.json.encode(row.body)
    except (TypeError, ValueError, UnicodeEncodeError):
        raise Refused("a value that JSON has no word for") from None
    parsed = parse_pair(Line(1, raw)).problems if form in _PAIRS else parse_line(raw, 1).problems
    errors = [problem for problem in parsed if problem.severity == "error"]
    if errors:
        raise Refused(errors[0].code)
    return raw
