"""The sample conversations: well formed, in the house style, and with a held-out file that is truly held out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from smedje.samples import DEMO_QUESTION, SYSTEM_PROMPT, support_heldout_path, support_train_path

OPENINGS = ("Glad to help. ", "Sorry to hear that. ", "Thanks for asking. ", "Thank you. ")
CLOSING = " Take care, the Ottervale team."
BOTH_FILES = pytest.mark.parametrize("path", [support_train_path(), support_heldout_path()], ids=["train", "heldout"])

Message = dict[str, str]


def _conversations(path: Path) -> list[list[Message]]:
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    assert all(set(row) == {"messages"} for row in rows)
    return [row["messages"] for row in rows]


def _said(conversations: list[list[Message]], role: str) -> list[str]:
    return [message["content"] for messages in conversations for message in messages if message["role"] == role]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def _runs_of_five(text: str) -> set[tuple[str, ...]]:
    words = _words(text)
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_files_hold_the_promised_number_of_conversations() -> None:
    """At least 240 conversations to train on, 15 percent or more of them with follow-ups, and exactly 40 held out."""
    train = _conversations(support_train_path())
    assert len(train) >= 240
    assert len(_conversations(support_heldout_path())) == 40
    assert sum(len(messages) > 3 for messages in train) / len(train) >= 0.15


@BOTH_FILES
def test_every_line_is_system_then_user_and_assistant_in_turn(path: Path) -> None:
    """Each line is a chat object of role and text only, under one system prompt, ending with an answer."""
    for messages in _conversations(path):
        assert all(set(message) == {"role", "content"} for message in messages)
        assert all(message["content"].strip() == message["content"] != "" for message in messages)
        assert messages[0] == {"role": "system", "content": SYSTEM_PROMPT}
        exchanges = (len(messages) - 1) // 2
        assert [message["role"] for message in messages[1:]] == ["user", "assistant"] * exchanges
        assert 1 <= exchanges <= 3


def test_system_prompt_is_short() -> None:
    """The system prompt has 35 to 50 words, since every sample pays for it."""
    assert 35 <= len(SYSTEM_PROMPT.split()) <= 50


@BOTH_FILES
def test_every_answer_keeps_the_house_style(path: Path) -> None:
    """An acknowledgement first, the sign-off last, 15 to 50 words, no lists and no contractions."""
    for answer in _said(_conversations(path), "assistant"):
        assert answer.startswith(OPENINGS), answer
        assert answer.endswith(CLOSING), answer
        assert 15 <= len(answer.split()) <= 50, answer
        assert "\n" not in answer, answer
        assert not re.search(r"n't\b|'(re|ll|ve|m)\b", answer), answer


@BOTH_FILES
def test_facts_do_not_contradict_each_other(path: Path) -> None:
    """Periods and addresses that occur in many answers are the same in all of them."""
    text = " ".join(_said(_conversations(path), "assistant"))
    assert set(re.findall(r"(\w+)-year warranty", text)) <= {"three", "one"}
    assert set(re.findall(r"[\w.]+\.example", text)) == {"help.ottervale.example"}
    assert set(re.findall(r"flat (\d+) euros", text)) == {"60"}
    assert set(re.findall(r"within (\d+) days", text)) <= {"30"}
    assert "code on the base" in text


def test_facts_of_the_answers_stand_in_the_fact_sheet() -> None:
    """Every price named in an answer is in README.md, so the sheet can be trusted."""
    sheet = support_train_path().with_name("README.md").read_text(encoding="utf-8")
    answers = _said(_conversations(support_train_path()) + _conversations(support_heldout_path()), "assistant")
    prices = {price for answer in answers for price in re.findall(r"(\d+) euros", answer)}
    assert len(prices) >= 10
    assert {price for price in prices if not re.search(rf"\b{price}\b", sheet)} == set()


def test_no_question_is_asked_twice() -> None:
    """No opening question and no answer body occurs twice, within or across the files, whatever its case or stops."""
    conversations = _conversations(support_train_path()) + _conversations(support_heldout_path())
    questions = [" ".join(_words(messages[1]["content"])) for messages in conversations]
    assert len(set(questions)) == len(questions)
    answers = _said(conversations, "assistant")
    assert len(set(answers)) == len(answers)


def test_heldout_questions_share_no_run_of_five_words_with_training() -> None:
    """The held-out questions are other questions, not training questions in another dress."""
    seen = {run for question in _said(_conversations(support_train_path()), "user") for run in _runs_of_five(question)}
    for question in _said(_conversations(support_heldout_path()), "user"):
        assert not _runs_of_five(question) & seen, question


def test_demo_question_is_in_neither_file() -> None:
    """The demonstration asks something new about things the training file does teach."""
    train, heldout = _conversations(support_train_path()), _conversations(support_heldout_path())
    seen = {run for question in _said(train + heldout, "user") for run in _runs_of_five(question)}
    assert not _runs_of_five(DEMO_QUESTION) & seen
    assert sum("three-year warranty" in answer for answer in _said(train, "assistant")) >= 10
    assert sum("open a case at help" in answer.lower() for answer in _said(train, "assistant")) >= 25
