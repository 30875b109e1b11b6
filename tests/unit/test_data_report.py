"""The whole report of a file and of a pair of files, and that each finding's command is one that can be typed."""

import json
import shlex
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sample_models import write_model_folder
from typer.testing import CliRunner

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.cli.data_change import advised_steps
from smedje.cli.main import app
from smedje.data.diff import diff_lines
from smedje.data.insights import look_at
from smedje.data.parts import compare_sides, split_file
from smedje.data.remedies import NEEDS, step_for
from smedje.data.repair import STEPS, repair_file
from smedje.data.view import view_line
from smedje.errors import InvalidRequest

SYSTEM = {"role": "system", "content": "Answer with one word."}


def chat(question: str, answer: str, *, system: bool = False, **keys: Any) -> dict[str, Any]:
    asked = {"role": "user", "content": question, **keys}
    return {"messages": [*([SYSTEM] if system else []), asked, {"role": "assistant", "content": answer}]}


def parcel(number: int) -> str:
    return f"Is parcel {sha256(bytes([number])).hexdigest()} here"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def typed(line: str, *, code: int = 0) -> str:
    words = shlex.split(line)
    assert words[0] == "smedje"
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == code, (line, result.output, result.exception)
    return result.stdout


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with something for every step that needs nothing beside it."""
    monkeypatch.chdir(tmp_path)
    rows = [chat(parcel(n), "no" if n in (3, 5, 9) else "yes", system=n > 2) for n in range(24)]
    rows += [
        rows[5],
        chat(parcel(6) + "?", "yes", system=True),
        chat(parcel(7), "no", system=True),
        chat("May I write to ida@post.dk?", "yes"),
        chat("And then?", "N/A"),
        chat("Is it late?", "yes<|im_end|>"),
        chat("Is it light?", "yes", id=3),
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "user", "content": "b"},
                *chat("c", "yes")["messages"],
            ]
        },
        {"messages": [*chat("d", "yes")["messages"], {"role": "user", "content": "Thanks"}]},
        chat("Empty?", ""),
    ]
    return write(tmp_path / "bad.jsonl", rows)


def test_every_repair_of_the_report_can_be_typed(bad: Path) -> None:
    """Each command that the report names runs as it stands, mends what it says, and leaves the file as it is."""
    before = bad.read_bytes()
    report = json.loads(typed("smedje data check bad.jsonl --json", code=1))
    assert report["insights"]["advice"][0] == (
        "Line 31: The message has the key 'id', which no chat format knows. Remove it. Known keys: role, content, "
        "name, weight, tool_calls, tool_call_id, function_call, refusal."
    )
    assert len(report["insights"]["advice"]) == 3
    steps = {one["step"]: one for one in report["repairs"]}
    alone = set(STEPS) - NEEDS.keys()
    assert set(steps) == alone
    for step, one in steps.items():
        assert one["command"] == f"smedje data repair bad.jsonl --out bad.repaired.jsonl --step {step}"
        typed(one["command"])
        again = json.loads(CliRunner().invoke(app, ["data", "check", "bad.repaired.jsonl", "--json"]).stdout)
        left = {mended for other in again["repairs"] if other["step"] == step for mended in other["mends"]}
        assert left < set(one["mends"]) or not left, (step, left)
        Path("bad.repaired.jsonl").unlink()
    assert bad.read_bytes() == before
    shown = typed("smedje data check bad.jsonl", code=1)
    assert all(one["command"] in shown for one in steps.values())
    typed("smedje data repair bad.jsonl --out good.jsonl --advised")
    good = json.loads(typed("smedje data check good.jsonl --json"))
    assert (good["verdict"], good["repairs"]) == ("ok", [])
    with pytest.raises(InvalidRequest, match="speaks for no repair"):
        advised_steps(write(bad.with_name("one.jsonl"), [chat(parcel(n), parcel(n + 50)) for n in range(12)]))


def test_problems_have_the_step_that_mends_them() -> None:
    """Errors of a line can at least be dropped; what no step can mend has none; every step named exists."""
    assert step_for("missing_content", "error") == "drop_invalid"
    assert step_for("consecutive_user_messages", "warning") == "merge"
    assert step_for("invalid_n_examples", "error") is None
    assert step_for("tool_arguments_not_json", "warning") is None


def test_the_difference_is_told_line_by_line(bad: Path, tmp_path: Path) -> None:
    """Dropped lines have no after; changed ones have both; the rest is not told. The command prints the same."""
    out = tmp_path / "out.jsonl"
    steps = ["clean", "redact", "drop_invalid", "drop_duplicates"]
    with out.open("wb") as sink:
        done = repair_file(bad, sink.write, steps=steps)
    found = {one.line: one for one in diff_lines(bad, out, done.changes)}
    assert {line: one.steps for line, one in found.items()} == {
        25: ("drop_duplicates",),
        28: ("redact",),
        30: ("clean",),
        31: ("clean",),
        33: ("drop_invalid",),
        34: ("drop_invalid",),
    }
    assert found[25].after is None
    assert found[28].after == found[28].before.replace("ida@post.dk", "[EMAIL]").replace(": ", ":").replace(", ", ",")
    shown = typed("smedje data repair bad.jsonl --out again.jsonl --step redact --diff")
    assert shown.splitlines()[1:] == ["@@ line 28: redact", f"- {found[28].before}", f"+ {found[28].after}"]


def test_a_pair_of_files_is_reported_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaks, labels that training never saw, shares of both; each with its command; the page has both files."""
    monkeypatch.chdir(tmp_path)
    training = [chat(f"The text of message {n}", "ab"[n % 2]) for n in range(40)]
    validation = [training[3], *(chat(f"A note that says {n}", "ac"[n % 2]) for n in range(11))]
    write(tmp_path / "train.jsonl", training)
    write(tmp_path / "valid.jsonl", validation)
    report = json.loads(typed("smedje data check train.jsonl --validation valid.jsonl --json"))
    codes = [one["code"] for one in report["insights"]["findings"]]
    assert codes == ["leaked_example", "unseen_label", "shifted_labels"]
    assert report["pair"]["labels"] == {"a": [0.5, 0.5], "b": [0.5, 1 / 12], "c": [0.0, 5 / 12]}
    assert report["validation"]["statistics"]["examples"] == 12
    commands = {one["step"]: one["command"] for one in report["repairs"]}
    assert commands["resplit"] == "smedje data split train.jsonl --out train-parts --shares 80/20"
    assert commands["drop_leaks"].endswith("--step drop_leaks --against OTHER")
    typed(commands["drop_leaks"].replace("OTHER", "valid.jsonl"))
    assert (
        not compare_sides(
            tmp_path / "train.repaired.jsonl", tmp_path / "valid.jsonl", (look_at(tmp_path / "train.jsonl"),) * 2
        )
        .findings[0]
        .code.startswith("leaked")
    )
    shown = typed("smedje data check train.jsonl --validation valid.jsonl --html page.html")
    assert "validation file valid.jsonl:" in shown
    assert "Labels in both files" in (tmp_path / "page.html").read_text()


def test_a_split_has_every_line_once_for_every_form(tmp_path: Path) -> None:
    """Chats, pairs and labelled texts: whole parts, prompts kept together, labels in proportion."""
    texts = write(tmp_path / "a.jsonl", [{"text": f"t{n}", "label": "ab"[n % 5 == 0]} for n in range(50)])
    parts = split_file(texts, (80, 10, 10), seed=1)
    assert parts.by_label
    assert sorted(line for lines in parts.lines.values() for line in lines) == list(range(1, 51))
    assert [len(lines) for lines in parts.lines.values()] == [40, 5, 5]
    pairs = [
        {
            "input": {"messages": [{"role": "user", "content": f"Q{n // 2}"}]},
            "preferred_output": [{"role": "assistant", "content": f"good {n}"}],
            "non_preferred_output": [{"role": "assistant", "content": "bad"}],
        }
        for n in range(20)
    ]
    found = split_file(write(tmp_path / "b.jsonl", pairs), (80, 20), seed=1)
    assert not found.by_label
    owners = {line: name for name, lines in found.lines.items() for line in lines}
    assert all(owners[line] == owners[line + 1] for line in range(1, 20, 2))


def test_every_form_is_seen_as_training_sees_it(tmp_path: Path) -> None:
    """A pair shows both answers, a labelled text its prompt with the last token marked."""
    tokenizer = load_chat_tokenizer(write_model_folder(tmp_path / "smollm2", "smollm2"))
    pair = {
        "input": {"messages": [{"role": "user", "content": "Q"}]},
        "preferred_output": [{"role": "assistant", "content": "good"}],
        "non_preferred_output": [{"role": "assistant", "content": "bad"}],
    }
    good, worse = view_line(write(tmp_path / "a.jsonl", [pair]), 1, tokenizer).examples
    assert "good" in "".join(token.text for token in good.tokens if token.weight)
    assert "bad" in "".join(token.text for token in worse.tokens if token.weight)
    (text,) = view_line(write(tmp_path / "b.jsonl", [{"text": "Hi", "label": "x"}]), 1, tokenizer).examples
    assert [token.weight for token in text.tokens][-2:] == [0.0, 1.0]
    assert "x" not in "".join(token.text for token in text.tokens)[-4:]
