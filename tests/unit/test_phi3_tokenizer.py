"""The Phi-3 tokenizer built from the Llama 2 vocabulary."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from smedje.errors import InvalidRequest
from smedje.modeling.phi3_tokenizer import phi3_tokenizer


@pytest.fixture
def folder(model_home: Path) -> Path:
    return model_home / "models" / "phi-3-tiny-random"


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_file_has_the_size_of_the_published_one(folder: Path) -> None:
    """Written with an indent of 2, the file has as many characters as Microsoft's."""
    assert len((folder / "tokenizer.json").read_text(encoding="utf-8")) == 1_702_636


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, my dog is cute", [15043, 29892, 590, 11203, 338, 274, 1082]),
        (
            "<|user|>\nWhat is the capital of France?<|end|>\n<|assistant|>\n",
            [32010, 1724, 338, 278, 7483, 310, 3444, 29973, 32007, 32001],
        ),
        ("", []),
    ],
)
def test_known_ids(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    """No BOS is added, and the role tokens swallow the newline after them."""
    assert tokenizer.encode(text).ids == ids


def test_added_tokens(tokenizer: Tokenizer) -> None:
    """The eleven added tokens have the published ids and the vocabulary has 32,011 entries."""
    wanted = {"<|endoftext|>": 32000, "<|assistant|>": 32001, "<|placeholder1|>": 32002, "<|placeholder4|>": 32005}
    wanted |= {"<|system|>": 32006, "<|end|>": 32007, "<|placeholder5|>": 32008, "<|user|>": 32010}
    assert {text: tokenizer.token_to_id(text) for text in wanted} == wanted
    assert tokenizer.get_vocab_size() == 32011


@pytest.mark.parametrize(
    "text", ["héllo wörld", "日本語 🎉", "  two  spaces", "def f(x):\n\treturn x\n", "\U0001f9ff\x00"]
)
def test_text_survives_a_round_trip(tokenizer: Tokenizer, text: str) -> None:
    """Any text decodes to itself, bytes outside the vocabulary included."""
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_transformers_agrees(folder: Path) -> None:
    """The folder loads as a tokenizer in transformers with the same ids, template and special tokens."""
    from transformers import AutoTokenizer

    loaded: Any = AutoTokenizer.from_pretrained(folder)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris."},
    ]
    text = "<|system|>\nBe brief.<|end|>\n<|user|>\nWhat is the capital of France?<|end|>\n"
    prompt = loaded.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == text + "<|assistant|>\n"
    whole = loaded.apply_chat_template(messages, tokenize=False)
    assert whole == text + "<|assistant|>\nParis.<|end|>\n<|endoftext|>"
    assert loaded(prompt).input_ids[-2:] == [32007, 32001]
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 32000, 32000)


def test_stop_ids(folder: Path) -> None:
    """Generation stops at the end of a turn, at the end of the text and where a new turn would begin."""
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [32000, 32001, 32007]


def test_other_vocabularies_are_refused() -> None:
    """A vocabulary that is not Llama 2's is an error, because its ids would be wrong without a sign."""
    with pytest.raises(InvalidRequest, match="not the Llama 2 vocabulary: it has 2 pieces and 1 merges"):
        phi3_tokenizer({"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b"]}})
