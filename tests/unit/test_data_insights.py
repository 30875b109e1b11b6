"""The data report beyond validity: copies, leaks, private data, languages, labels, the token view, the page."""

import json
from pathlib import Path
from typing import Any

import pytest
from sample_models import write_model_folder
from typer.testing import CliRunner

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.cli.main import app
from smedje.data.counting import count_tokens
from smedje.data.encode import encode_file
from smedje.data.insights import insights_to_dict, look_at, with_token_bars
from smedje.data.language import guess_language
from smedje.data.leaks import find_leaks
from smedje.data.near import NearIndex
from smedje.data.page import report_page
from smedje.data.personal import find_private, redact
from smedje.data.report import histogram, report_to_dict
from smedje.data.validate import validate_file
from smedje.data.view import view_line
from smedje.errors import InvalidData, NotFound

SAMPLES = Path(__file__).resolve().parents[2] / "src" / "smedje" / "samples"
SECRET = "sk-" + "abcdefghij0123456789ABCD"


def chat(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Write to ida.holm@post.example.dk today", ["email"]),
        ("Call +45 20 12 34 56 or 555-123-4567", ["phone", "phone"]),
        ("Card 4111 1111 1111 1111", ["card"]),
        ("Card 4111 1111 1111 1112", []),
        ("IBAN DK50 0040 0440 1162 43", ["iban"]),
        ("IBAN DK51 0040 0440 1162 43", []),
        ("from 8.8.8.8, not 10.0.0.1 or 1.2.3.4.5", ["ip_address"]),
        ("key " + SECRET, ["api_key"]),
        ("-----BEGIN RSA PRIVATE KEY-----", ["api_key"]),
        ("CPR 010190-1234", ["cpr"]),
        ("Version 1.2.3, order 12345678, 12:30, 2024-05-06, p_q", []),
    ],
)
def test_private_data_is_found_by_kind(text: str, kinds: list[str]) -> None:
    """Shapes and checksums decide; a number that only looks like one is left alone."""
    assert [place.kind for place in find_private(text)] == kinds
    assert find_private(redact(text)) == []


def test_redacting_keeps_the_rest() -> None:
    """Only the private part is replaced, by its kind."""
    assert redact("Mail ida@post.dk, please.") == "Mail [EMAIL], please."
    assert redact("No number here") == "No number here"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Where is the parcel that I have ordered?", "en"),
        ("Hvor er den pakke, jeg har bestilt, og hvad kan du gøre?", "da"),
        ("Wo ist das Paket und wie kann ich es haben?", "de"),
        ("Où est le colis que vous avez pour moi dans la boîte?", "fr"),
        ("我的包裹在哪里", "zh"),
        ("荷物はどこですか", "ja"),
        ("Где моя посылка", "ru"),
        ("12345", None),
        ("positive", None),
    ],
)
def test_languages_are_guessed_or_left_open(text: str, code: str | None) -> None:
    """By script, else by small words; a word alone says nothing."""
    assert guess_language(text) == code


def test_near_copies_are_found_and_others_are_not() -> None:
    """Small edits are near copies, the same template with other content is not, and what is kept can be looked up."""
    index = NearIndex()
    base = " ".join(f"word{number}" for number in range(80))
    assert index.add(1, base) is None
    assert index.add(2, " ".join(f"other{number}" for number in range(80))) is None
    near = index.find(base.replace("word40", "changed").upper())
    assert near is not None
    assert near.key == 1
    assert 0.8 <= near.similarity < 1
    assert index.find(base[:200]) is None
    assert index.find("") is None
    assert len(index) == 2


def test_findings_name_lines_and_never_values(tmp_path: Path) -> None:
    """Copies, near copies, contradictions, private data, boilerplate and missing system prompts, with their lines."""
    rows = [chat(f"{n} {'abcdefghij'[n] * 40}?", f"{'klmnopqrst'[n] * 60}", "Be brief.") for n in range(10)]
    rows += [
        rows[0],
        chat(rows[1]["messages"][1]["content"], "Something else entirely, quite another answer.", "Be brief."),
        chat("Who?", "Write to ida@post.dk or use " + SECRET, "Be brief."),
        chat("What now?", "N/A", "Be brief."),
        chat("How is the weather at the sea?", "Windy and wet, as every year in November."),
    ]
    path = write(tmp_path / "a.jsonl", rows)
    insights = look_at(path)
    found = {one.code: one.lines for one in insights.findings}
    assert found == {
        "duplicate_example": (11,),
        "contradictory_answer": (12,),
        "private_email": (13,),
        "private_api_key": (13,),
        "boilerplate_answer": (14,),
        "missing_system_prompt": (15,),
    }
    assert insights.findings[0].code == "private_api_key"
    assert len(insights.advice) == 3
    assert insights.advice[0].startswith("1 example holds an API key. ")
    text = json.dumps(insights_to_dict(insights))
    assert SECRET not in text
    assert "ida@post.dk" not in text


def test_labels_and_their_balance(tmp_path: Path) -> None:
    """Few short answers that repeat are labels; one that is rare is told."""
    rows = [
        chat(f"Review {'abcdefghijklmnopqrstuvwxyz'[n % 26] * 30} {n}", "bad" if n < 3 else "good") for n in range(40)
    ]
    insights = look_at(write(tmp_path / "a.jsonl", rows))
    assert insights.labels == {"good": 37, "bad": 3}
    assert [one.code for one in insights.findings if one.repair == "rebalance"] == ["unbalanced_labels"]
    assert look_at(SAMPLES / "support_train.jsonl").labels is None


def test_leaks_between_two_files(tmp_path: Path) -> None:
    """Exact and near copies of training rows in the validation file, by the validation file's lines."""
    words = [f"w{number}" for number in range(60)]
    rows = [chat(" ".join(words[n:] + words[:n]) + f" {n} {'abcdefghij'[n] * 50}", f"answer {n}") for n in range(10)]
    edited = json.loads(json.dumps(rows[3]).replace("answer 3", "answer 3!"))
    training = write(tmp_path / "t.jsonl", rows)
    validation = write(tmp_path / "v.jsonl", [chat("New", "Quite new"), rows[5], edited])
    leaks = {one.code: one.lines for one in find_leaks(training, validation)}
    assert leaks == {"leaked_example": (2,), "nearly_leaked_example": (3,)}
    [told] = find_leaks(training, write(tmp_path / "three.jsonl", rows[:3]), shown=1)
    assert (told.count, told.lines) == (3, (1,))
    assert find_leaks(training, write(tmp_path / "w.jsonl", [chat("New", "Quite new")])) == ()


def test_the_view_is_what_training_reads(tmp_path: Path) -> None:
    """Ids and weights of a line equal those of the encoded dataset; other lines are refused by name."""
    tokenizer = load_chat_tokenizer(write_model_folder(tmp_path / "smollm2", "smollm2"))
    path = write(tmp_path / "a.jsonl", [chat(f"Q{n}", f"A{n}") for n in range(3)])
    path.write_bytes(path.read_bytes() + b"{}\n")
    (example,) = view_line(path, 2, tokenizer).examples
    good = write(tmp_path / "b.jsonl", [chat(f"Q{n}", f"A{n}") for n in range(3)])
    tokens, weights = encode_file(good, tokenizer, max_tokens=500).example(1)
    assert [one.id for one in example.tokens] == list(tokens)
    assert [one.weight for one in example.tokens] == list(weights)
    assert "A1" in "".join(one.text for one in example.tokens if one.weight > 0)
    with pytest.raises(NotFound):
        view_line(path, 9, tokenizer)
    with pytest.raises(InvalidData):
        view_line(path, 4, tokenizer)


def test_bars_count_every_value() -> None:
    """The bars' counts add up, for one value too."""
    assert histogram([]) == ()
    assert sum(bar.count for bar in histogram([7])) == 1
    bars = histogram(list(range(1000)), bars=20)
    assert (len(bars), bars[0].low, bars[-1].high, sum(bar.count for bar in bars)) == (20, 0, 999, 1000)


def test_the_page_is_one_safe_file(tmp_path: Path) -> None:
    """No script, no link, texts escaped, a described picture where values differ, tables with headings."""
    tokenizer = load_chat_tokenizer(write_model_folder(tmp_path / "smollm2", "smollm2"))
    path = write(tmp_path / "a.jsonl", [chat(f"Q{n}", "A <script>") for n in range(12)])
    tokens = count_tokens(path, tokenizer, max_tokens=None).statistics
    insights = with_token_bars(look_at(path), tokens)
    report = {**report_to_dict(validate_file(path)), "insights": insights_to_dict(insights)}
    page = report_page(report, title="<img src=x>.jsonl")
    assert "<script" not in page
    assert "<img" not in page
    assert "http" not in page
    assert page.count('role="img" aria-label="') == 2
    assert page.count("in each of 12 examples") == 2
    assert 'lang="en"' in page


def test_the_command_writes_page_and_json(tmp_path: Path) -> None:
    """`data check --html --json --validation` prints the findings and writes the page."""
    training, validation = SAMPLES / "support_train.jsonl", SAMPLES / "support_heldout.jsonl"
    words = [
        "data",
        "check",
        str(training),
        "--validation",
        str(validation),
        "--html",
        str(tmp_path / "o.html"),
        "--json",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert body["insights"]["examples"] == body["statistics"]["valid_examples"]
    assert (tmp_path / "o.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    shown = CliRunner().invoke(app, ["data", "check", str(training)])
    assert shown.exit_code == 0
    assert "characters an example" in shown.stdout
