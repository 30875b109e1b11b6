import json
from pathlib import Path

import pytest
from sample_models import write_model_folder

from smedje.chat.template import render_examples
from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from smedje.data.encode import encode_file
from smedje.errors import InvalidData


def lines_file(path: Path, conversations: list[list[str]]) -> Path:
    """A chat file whose conversations alternate between user and assistant."""
    roles = ("user", "assistant")
    bodies = [
        {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}
        for texts in conversations
    ]
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies), encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> ChatTokenizer:
    return load_chat_tokenizer(write_model_folder(tmp_path / "smollm2", "smollm2"))


def test_rows_are_the_rendered_examples(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Row i holds the tokens and weights of the i-th example, with its source line; totals add up."""
    conversations = [["Hello", "I am fine."], ["My parcel", "is late", "thank you", "today"]]
    dataset = encode_file(lines_file(tmp_path / "a.jsonl", conversations), tokenizer, max_tokens=500)
    assert len(dataset) == 2
    assert list(dataset.lines) == [1, 2]
    for row, texts in enumerate(conversations):
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        (example,) = render_examples(tokenizer, messages)
        tokens, weights = dataset.example(row)
        assert list(tokens) == example.tokens
        assert list(weights) == example.weights
        assert dataset.length(row) == len(example.tokens)
    assert dataset.num_tokens == dataset.length(0) + dataset.length(1)
    assert 0 < dataset.num_trained_tokens < dataset.num_tokens


def test_answers_with_examples_of_their_own_keep_their_line(tmp_path: Path) -> None:
    """Where a template makes an example an answer, the rows share line and group."""
    plain = load_chat_tokenizer(write_model_folder(tmp_path / "plain", "plain"))
    dataset = encode_file(lines_file(tmp_path / "a.jsonl", [["a", "b", "c", "d"], ["e", "f"]]), plain, max_tokens=99)
    assert list(dataset.lines) == [1, 1, 2]
    assert dataset.groups[0] == dataset.groups[1] != dataset.groups[2]


def test_copies_of_a_conversation_share_a_group(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Equal conversations on different lines have one group."""
    path = lines_file(tmp_path / "a.jsonl", [["a", "b"], ["c", "d"], ["a", "b"]])
    groups = encode_file(path, tokenizer, max_tokens=99).groups
    assert groups[0] == groups[2] != groups[1]


def test_too_long_an_example_is_refused_and_never_cut(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """The error tells the line, the length and the limit."""
    path = lines_file(tmp_path / "a.jsonl", [["a", "b"], ["a", "b " * 100]])
    with pytest.raises(InvalidData, match=r"Line 2 has \d+ tokens; at most 120 are allowed") as caught:
        encode_file(path, tokenizer, max_tokens=120)
    assert caught.value.code == "example_too_long"


def test_what_the_template_refuses_is_told_with_its_line(tmp_path: Path) -> None:
    """A conversation that passes the general rules can still be wrong for one model."""
    gemma = load_chat_tokenizer(write_model_folder(tmp_path / "gemma-2", "gemma-2"))
    path = tmp_path / "a.jsonl"
    roles = ("user", "user", "assistant")
    path.write_text(json.dumps({"messages": [{"role": role, "content": "x"} for role in roles]}))
    with pytest.raises(InvalidData, match=r"Line 1: .*must alternate"):
        encode_file(path, gemma, max_tokens=99)


def test_line_that_is_no_example_is_refused_with_its_problems(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """The error carries the problems of the line."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n{"a"\n')
    with pytest.raises(InvalidData, match="Line 2: Not valid JSON at column 5") as caught:
        encode_file(path, tokenizer, max_tokens=99)
    assert caught.value.problems[0]["code"] == "invalid_json"
