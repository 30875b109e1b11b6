"""Import: rows of other formats to chat lines, with an account in which every row stands once."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from smedje.cli.main import app
from smedje.data.edits import edit_line
from smedje.data.forms import parse_item
from smedje.data.import_files import SourceRow
from smedje.data.importers import (
    FORMATS,
    Import,
    ImportPlan,
    Mapped,
    import_path,
    import_rows,
    plan_import,
    take_row,
    take_rows,
)
from smedje.data.lines import Line
from smedje.data.repair import EDITS
from smedje.data.validate import validate_file
from smedje.errors import InvalidRequest


def chat(question: str, answer: str, system: str | None = None, **columns: Any) -> bytes:
    first = [] if system is None else [{"role": "system", "content": system}]
    messages = [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **columns}).encode()


def file_of(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def imported(source: Path, **options: Any) -> tuple[list[list[tuple[str, str]]], Import]:
    out: list[bytes] = []
    done = import_path(source, out.append, **options)
    rows = [json.loads(line)["messages"] for line in out]
    return [[(one["role"], one["content"]) for one in row] for row in rows], done


PAIR = [("user", "Q"), ("assistant", "A")]
FORMS = [
    ("sharegpt", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, PAIR),
    ("alpaca", {"instruction": "Do", "input": "it", "output": "A"}, [("user", "Do\n\nit"), ("assistant", "A")]),
    (
        "alpaca",
        {"instruction": "Q", "input": "", "output": "A", "history": [["a", "b"]]},
        [("user", "a"), ("assistant", "b"), *PAIR],
    ),
    ("prompt-completion", {"prompt": "Q", "completion": " A"}, PAIR),
    ("chat", json.loads(chat("Q", "A", id=3)), PAIR),
]


@pytest.mark.parametrize(("form", "row", "messages"), FORMS)
def test_each_format_is_recognised(tmp_path: Path, form: str, row: Any, messages: Any) -> None:
    """Row by row, from JSON Lines and from a JSON list alike."""
    lines = file_of(tmp_path / "a.jsonl", json.dumps(row).encode())
    rows, done = imported(lines)
    assert rows == [messages]
    assert dict(done.formats) == {form: 1}
    whole = tmp_path / "a.json"
    whole.write_text(json.dumps([row, row]), encoding="utf-8")
    assert imported(whole)[0] == [messages, messages]


def test_tables_are_mapped_by_column(tmp_path: Path) -> None:
    """CSV with quotes and line ends inside cells, TSV, and what is not used is counted."""
    table = tmp_path / "a.csv"
    table.write_text('\ufeffask,say,id\n"Q, with\nlines","A ""quoted""",1\nempty,,2\n', encoding="utf-8")
    rows, done = imported(table, columns=Mapped(user="ask", assistant="say"))
    assert rows == [[("user", "Q, with\nlines"), ("assistant", 'A "quoted"')]]
    assert dict(done.reasons) == {"missing_content": 1}
    assert done.dropped[0].row == 2
    assert done.unused_columns == {"id": 1}
    tabs = tmp_path / "a.tsv"
    tabs.write_text("prompt\tcompletion\nQ\tA\n", encoding="utf-8")
    assert imported(tabs)[0] == [PAIR]


def test_every_row_of_a_folder_is_kept_or_dropped_with_a_reason(tmp_path: Path) -> None:
    """Files by name, a dataset's own descriptions left out, odd rows dropped by reason."""
    (tmp_path / "data").mkdir()
    file_of(tmp_path / "data" / "1.jsonl", json.dumps(FORMS[0][1]).encode(), b"{", b"3", b'{"text": "x"}')
    robot = {"conversations": [{"from": "robot", "value": "x"}]}
    file_of(tmp_path / "data" / "2.jsonl", json.dumps(robot).encode(), chat("Q", ""))
    (tmp_path / "dataset_info.json").write_text("{}", encoding="utf-8")
    rows, done = imported(tmp_path)
    assert (done.rows, done.kept, len(rows)) == (6, 1, 1)
    assert sum(done.reasons.values()) == 5
    assert [(one.file, one.row) for one in done.dropped] == [
        ("data/1.jsonl", 2),
        ("data/1.jsonl", 3),
        ("data/1.jsonl", 4),
        ("data/2.jsonl", 1),
        ("data/2.jsonl", 2),
    ]


def test_what_cannot_be_imported_is_told(tmp_path: Path) -> None:
    """Broken Parquet and JSON, an empty folder, an unknown format and a column twice are refused in words."""
    parquet = tmp_path / "a.parquet"
    parquet.write_bytes(b"PAR1")
    broken = tmp_path / "a.json"
    broken.write_text("[1,", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    twice = tmp_path / "twice.csv"
    twice.write_text("prompt,prompt\na,b\n", encoding="utf-8")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(chat("Q", "A") * 100)[:40])
    for source, options in (
        (twice, {}),
        (cut, {}),
        (parquet, {}),
        (tmp_path / "empty", {}),
        (broken, {}),
        (parquet, {"form": "xml"}),
    ):
        with pytest.raises(InvalidRequest):
            imported(source, **options)


def test_columnar_files_are_read_with_their_lists(tmp_path: Path) -> None:
    """Parquet and Arrow rows: messages without the nulls that columns fill in, mapped columns, dates left out."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows = [
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "n": 1},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "tool_calls": [call]}], "n": None},
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        out: list[bytes] = []
        done = import_path(tmp_path / name, out.append)
        assert json.loads(out[0])["messages"] == rows[0]["messages"]
        assert json.loads(out[1])["messages"] == rows[1]["messages"]
        assert done.unused_columns == {"n": 1}
    flat = pa.table({"ask": ["Q", None], "say": [7, 8], "turns": [[{"from": "human", "value": "x"}], []]})
    pq.write_table(flat, tmp_path / "b.parquet")
    rows_, done = imported(tmp_path / "b.parquet", columns=Mapped(user="ask", assistant="say"))
    assert rows_ == [[("user", "Q"), ("assistant", "7")]]
    assert done.dropped[0].reason == "no column ask"


def test_a_dataset_folder_is_imported_by_split(tmp_path: Path) -> None:
    """Shards of the chosen split alone, hidden files and descriptions left out; without a choice it is refused."""
    (tmp_path / "data").mkdir()
    (tmp_path / ".cache").mkdir()
    file_of(tmp_path / "data" / "train-00000-of-00002.jsonl", chat("Q1", "A"))
    file_of(tmp_path / "data" / "train-00001-of-00002.jsonl", chat("Q2", "A"))
    (tmp_path / "data" / "test-00000-of-00001.csv").write_text("prompt,completion\nQ3,A\n", encoding="utf-8")
    file_of(tmp_path / ".cache" / "train.jsonl", chat("Q4", "A"))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")
    with pytest.raises(InvalidRequest, match="test, train") as told:
        plan_import(tmp_path)
    assert told.value.code == "split_needed"
    out: list[bytes] = []
    done = import_rows(take_rows(plan_import(tmp_path, split="train")), out.append)
    assert [json.loads(line)["messages"][0]["content"] for line in out] == ["Q1", "Q2"]
    assert done.rows == 2
    with pytest.raises(InvalidRequest, match="no split 'validation'"):
        plan_import(tmp_path, split="validation")


def node(name: str, parent: str | None, role: str, *parts: Any, **more: Any) -> dict[str, Any]:
    """A node of a ChatGPT export's tree."""
    kind = more.pop("kind", "text" if all(isinstance(part, str) for part in parts) else "multimodal_text")
    message = {"author": {"role": role}, "content": {"content_type": kind, "parts": list(parts)}, **more}
    return {"id": name, "parent": parent, "message": message}


def export(*nodes: dict[str, Any], current: str) -> dict[str, Any]:
    """A conversation of a ChatGPT export."""
    root = {"id": "root", "parent": None, "message": None}
    return {"title": "t", "mapping": {one["id"]: one for one in (root, *nodes)}, "current_node": current}


def test_chat_exports_are_read_along_the_branch_that_was_shown(tmp_path: Path) -> None:
    """Branches, tools, hidden messages and images are left out by name; what they leave meaningless is dropped."""
    image = {"content_type": "image_asset_pointer", "asset_pointer": "x"}
    rows = [
        export(
            node("s", "root", "system", "", weight=0),
            node("h", "s", "user", "about me", metadata={"is_visually_hidden_from_conversation": True}),
            node("q", "h", "user", "Q", image),
            node("old", "q", "assistant", "abandoned"),
            node("a1", "q", "assistant", "Let me look."),
            node("call", "a1", "assistant", "print(1)", kind="code", recipient="python"),
            node("said", "call", "tool", "1", kind="execution_output"),
            node("a2", "said", "assistant", "It is 1."),
            node("q2", "a2", "user", "Thanks"),
            current="q2",
        ),
        export(node("q", "root", "user", image), node("a", "q", "assistant", "A cat."), current="a"),
        export(node("q", "root", "user", "Hello?"), current="q"),
        export(node("q", "a", "user", "Q"), node("a", "q", "assistant", "A"), current="a"),
    ]
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    found, done = imported(path)
    assert found == [[("user", "Q"), ("assistant", "Let me look.\n\nIt is 1.")]]
    assert dict(done.formats) == {"chatgpt": 4}
    assert dict(done.left_out) == {
        "a message of another branch": 1,
        "a hidden message": 1,
        "a part of the type 'image_asset_pointer'": 1,
        "a call of a tool": 1,
        "what a tool said": 1,
        "a user message after the last answer": 1,
    }
    assert [(one.row, one.reason) for one in done.dropped] == [
        (2, "a question that is not text"),
        (3, "a conversation without an answer"),
        (4, "a conversation whose tree runs in a circle"),
    ]
    assert done.trimmed[0].row == 1
    assert imported(path, form="sharegpt")[1].kept == 0


def test_preference_pairs_are_imported_and_never_mixed_with_chats(tmp_path: Path) -> None:
    """OpenAI's and TRL's spellings become one; a chat among pairs is dropped with its reason."""
    asked = [{"role": "user", "content": "Q"}]
    good, bad = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}
    rows = [
        {"prompt": "Q", "chosen": " yes", "rejected": "no"},
        {"chosen": [*asked, good], "rejected": [*asked, bad]},
        {"prompt": asked, "chosen": [good], "rejected": [bad], "score": 3},
        {"input": {"messages": asked}, "preferred_output": [good], "non_preferred_output": [bad]},
        json.loads(chat("Q", "A")),
        {"prompt": "Q", "chosen": "same", "rejected": "same"},
        {"chosen": [*asked, good], "rejected": [bad]},
    ]
    out: list[bytes] = []
    done = import_path(file_of(tmp_path / "a.jsonl", *(json.dumps(row).encode() for row in rows)), out.append)
    assert len(set(out)) == 1
    assert done.kept == 4
    assert [(one.row, one.reason) for one in done.dropped] == [
        (5, "a chat example among preference pairs"),
        (6, "identical_answers"),
        (7, "chosen and rejected do not begin alike"),
    ]


def test_odd_tables_and_objects_lose_no_row(tmp_path: Path) -> None:
    """Long cells, bytes that are no UTF-8, too many cells; rows inside one JSON object; packed files; line numbers."""
    table = tmp_path / "a.csv"
    long = "x" * 200_000
    table.write_bytes(f"prompt,completion\nQ,{long}\nQ,A,B\n".encode() + b"Q,\xe6\nQ\n")
    rows, done = imported(table)
    assert rows == [[("user", "Q"), ("assistant", long)]]
    assert [(one.row, one.reason) for one in done.dropped] == [
        (2, "more cells than columns"),
        (3, "invalid_utf8"),
        (4, "missing_content"),
    ]
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps({"version": 1, "data": [FORMS[0][1]] * 2}, indent=1), encoding="utf-8")
    assert imported(whole)[1].kept == 2
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(chat("Q", "A") + b"\n\n{\n"))
    assert [(one.row, one.reason) for one in imported(packed)[1].dropped] == [(3, "invalid_json")]


def test_the_command_writes_an_account_of_every_row(tmp_path: Path) -> None:
    """One JSON line a row: its line in the new file, or why it is not there; a failed import leaves no file."""
    source = file_of(
        tmp_path / "a.jsonl", b'{"ask": "Q", "say": "A", "id": 1}', b'{"ask": "Q"}', b'{"ask":"R","say":"B"}'
    )
    out, account = tmp_path / "out.jsonl", tmp_path / "account.jsonl"
    words = ["data", "import", source, "--out", out, "--account", account, "--column", "user=ask"]
    result = CliRunner().invoke(app, [str(word) for word in [*words, "--column", "assistant=say"]])
    assert result.exit_code == 0, result.output
    assert "2 of 3 rows kept; dropped: 1 x no column say." in result.output
    assert [json.loads(line) for line in account.read_text().splitlines()] == [
        {"file": "a.jsonl", "row": 1, "line": 1, "left_out": ["the column id"]},
        {"file": "a.jsonl", "row": 2, "dropped": "no column say"},
        {"file": "a.jsonl", "row": 3, "line": 2},
    ]
    assert len(out.read_bytes().splitlines()) == 2
    assert validate_file(out, fewest_examples=1).verdict == "ok"
    broken = tmp_path / "broken.json"
    broken.write_text("[1,", encoding="utf-8")
    result = CliRunner().invoke(app, ["data", "import", str(broken), "--out", str(tmp_path / "never.jsonl")])
    assert isinstance(result.exception, InvalidRequest)
    assert not list(tmp_path.glob("never*"))


WORDS = "messages conversations prompt completion instruction output input history chosen rejected preferred_output"
LEAVES = st.none() | st.integers(-2, 2) | st.sampled_from(["", "user", "assistant", "human", "text", "a", "b", "\x00"])
ODD = (
    LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "a"]), LEAVES, max_size=2)
)
TURN = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value", "weight", "tool_calls", "name", "id"]), ODD, max_size=5
)
HELD = ODD | st.lists(TURN | ODD, max_size=4) | st.fixed_dictionaries({"messages": st.lists(TURN, max_size=3)})
NODE = st.fixed_dictionaries(
    {},
    optional={
        "parent": st.sampled_from(["a", "b", None]),
        "message": ODD
        | st.fixed_dictionaries(
            {},
            optional={
                "author": ODD | st.fixed_dictionaries({"role": ODD}),
                "content": ODD | st.fixed_dictionaries({"content_type": ODD, "parts": ODD}),
                "recipient": ODD,
                "metadata": ODD,
            },
        ),
    },
)
EXPORT = st.fixed_dictionaries(
    {"mapping": st.dictionaries(st.sampled_from(["a", "b"]), NODE | ODD), "current_node": ODD}
)
ROW = EXPORT | st.dictionaries(
    st.sampled_from([*WORDS.split(), "non_preferred_output", "system", "a", "b"]), HELD, max_size=6
)


@given(value=ROW, columns=st.booleans())
@settings(max_examples=200, deadline=None)
def test_no_row_stops_an_import(value: dict[str, Any], columns: bool) -> None:
    """Whatever a row holds, it is kept or dropped with a reason; what is kept has no error."""
    mapped = Mapped(user="a", assistant="b", system="system") if columns else None
    row = SourceRow("x.jsonl", 1, value)
    for form in FORMATS if columns else FORMATS[:-1]:
        one = take_row(row, ImportPlan(files=(), form=form, columns=mapped))
        assert (one.line is None) == bool(one.reason)
        if one.line is not None:
            problems = parse_item(Line(1, one.line), "preference" if b'"input"' in one.line[:9] else "chat").problems
            assert not [problem for problem in problems if problem.severity == "error"]


@given(ROW)
@settings(max_examples=200, deadline=None)
def test_no_line_stops_a_repair(value: Any) -> None:
    """Every edit of every line ends with a value, and doing it twice is doing it once."""
    for step in EDITS:
        once = edit_line(value, step, system="Be brief.")
        assert edit_line(once, step, system="Be brief.") == once


def test_without_pyarrow_the_remedy_is_told(tmp_path: Path) -> None:
    """Parquet and Arrow need an extra; without it the command says which, and leaves no file."""
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"PAR1")
        words = ["data", "import", str(tmp_path / name), "--out", str(tmp_path / "out.jsonl")]
        code = f"import sys; sys.modules['pyarrow'] = None; from smedje.cli.main import run; sys.exit(run({words!r}))"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert found.returncode == 7
        assert (
            f"error: {name} needs pyarrow, which is not installed. Run: pip install 'smedje[parquet]'" in found.stderr
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.arrow", "a.parquet"]
