"""`smedje files` beyond upload and delete, against a live server: from the report to the row that a model saw."""

import json
from pathlib import Path

from tests.api_server import TINY, Server, chat_lines
from tests.cli_terminal import Terminal

PRIVATE = json.dumps(
    {
        "messages": [
            {"role": "user", "content": "Whom do I write to?"},
            {"role": "assistant", "content": "Write to ida@post.dk"},
        ]
    }
).encode()


def test_a_finding_is_mended_by_what_the_report_says_to_type(smedje: Terminal, tmp_path: Path) -> None:
    """report names the command; the command makes a file; diff and lineage tell what it did; the page is written."""
    (tmp_path / "train.jsonl").write_bytes(chat_lines(12) + PRIVATE + b"\n")
    source = smedje.json("files", "upload", "train.jsonl")["id"]
    shown = smedje("files", "report", source, "--model", TINY, "--html", "page.html")
    command = f"smedje files repair {source} --step redact"
    assert command in shown
    assert "ida@post.dk" not in shown
    assert "<mark>" in (tmp_path / "page.html").read_text()
    assert "1 changed by redact" in smedje(*command.split()[1:])
    made = smedje.json("files", "lineage", source)["made_into"][0]
    difference = smedje("files", "diff", made).splitlines()
    assert difference[0] == "@@ line 13: redact"
    assert difference[1][0] + difference[2][0] == "-+"
    assert source in smedje("files", "lineage", made)
    smedje("files", "report", source, "--validation", made)
    parts = smedje.json("files", "split", source, "--shares", "80/20", "--seed", "3")["parts"]
    assert sum(part["made_from"]["lines_written"] for part in parts.values()) == 13
    assert "validation" in smedje("files", "split", source)


def test_a_table_is_imported_and_a_row_traced(smedje: Terminal, tmp_path: Path, server: Server) -> None:
    """import uploads the raw table and tells the account; trace finds a row by line and by text; delete tells jobs."""
    rows = [f"Question {n},Answer {n}" for n in range(12)]
    (tmp_path / "rows.csv").write_text("\n".join(["ask,say", *rows, "Empty,", ""]), encoding="utf-8")
    words = ["files", "import", "rows.csv", "--column", "user=ask", "--column", "assistant=say"]
    shown = smedje(*words)
    assert "12 of 13 rows kept; dropped: 1 x missing_content." in shown
    made = smedje.json(*words)["file"]["id"]
    job = server.client().fine_tuning.jobs.create(model=TINY, training_file=made).id
    traced = smedje.json("files", "trace", made, "--line", "3")
    assert traced["jobs"] == [job]
    line = (server.client().files.content(made).content).splitlines()[2].decode()
    (tmp_path / "row.json").write_text(line, encoding="utf-8")
    assert smedje.json("files", "trace", "--row", "row.json") == smedje.json("files", "trace", "--row", line) == traced
    assert "No model saw this row." in smedje("files", "trace", made, "--line", "3")
    assert f"it was used in {job}" in smedje("files", "delete", made)
    smedje("files", "trace", code=1)
    smedje("files", "import", "nothing.csv", code=3)
    smedje("files", "import", "http://127.0.0.1:1/rows.csv", code=1)
    assert "Nothing was predicted" in smedje("jobs", "compare", job)
