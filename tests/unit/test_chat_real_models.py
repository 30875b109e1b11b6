import random
from pathlib import Path
from typing import Any

import pytest

from smedje.chat.template import render_examples, render_prompt
from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer

MODELS = ("smollm2-135m-instruct", "phi-3-tiny-random")
WORDS = ["Hello", "my parcel is 19 days late!", "øl og brød", "🙂", "def f(x):\n    return x + 1", "東京", "thank you."]


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, model_home: Path) -> Path:
    return model_home / "models" / request.param


def conversation(draw: random.Random, turns: int) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": "Be brief."}] if draw.random() < 0.5 else []
    for _ in range(turns):
        messages.append({"role": "user", "content": " ".join(draw.choices(WORDS, k=6))})
        messages.append({"role": "assistant", "content": " ".join(draw.choices(WORDS, k=6))})
    return messages


def oracle(folder: Path) -> Any:
    """The tokenizer as transformers reads it from the same files."""
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def test_pieces_of_characters_have_their_bytes(folder: Path) -> None:
    """The bytes of the tokens of a text that is cut inside characters are, joined, the bytes of the text."""
    tokenizer = load_chat_tokenizer(folder)
    text = "\nø東🦊é"
    pieces = [tokenizer.raw_bytes(number) or tokenizer.decode([number]).encode() for number in tokenizer.encode(text)]
    assert b"".join(pieces).endswith(text.encode())


def test_ids_equal_transformers(folder: Path) -> None:
    """Prompts of seeded conversations have the ids of `apply_chat_template`, and examples begin with them."""
    tokenizer, theirs = load_chat_tokenizer(folder), oracle(folder)
    draw = random.Random(11)
    for turns in (1, 1, 2, 3, 4):
        messages = conversation(draw, turns)
        prompt = render_prompt(tokenizer, messages[:-1])
        assert prompt == theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        (example,) = render_examples(tokenizer, messages)
        assert example.tokens[: len(prompt)] == prompt
        whole = theirs.apply_chat_template(messages, return_dict=False)
        assert whole[: len(example.tokens)] == example.tokens


def test_real_models_know_how_an_answer_ends(folder: Path) -> None:
    """SmolLM2 ends with <|im_end|>, Phi-3 with <|end|> or <|endoftext|>; a trained answer ends with the first."""
    tokenizer = load_chat_tokenizer(folder)
    ends = {tokenizer.tokenizer.id_to_token(number) for number in tokenizer.stop_ids}
    expected = {"<|im_end|>"} if folder.name.startswith("smollm2") else {"<|end|>", "<|endoftext|>"}
    assert expected <= ends
    (example,) = render_examples(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    last = tokenizer.decode(example.tokens[-1:], skip_special=False)
    assert last == ("<|im_end|>" if folder.name.startswith("smollm2") else "<|end|>")


def test_phi_3_prompt_is_the_published_one(model_home: Path) -> None:
    """The ids that Microsoft's tokenizer gives for a one-line question, newlines eaten by the control tokens."""
    tokenizer = load_chat_tokenizer(model_home / "models" / "phi-3-tiny-random")
    prompt = render_prompt(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    assert prompt == [32010, 1724, 338, 278, 7483, 310, 3444, 29973, 32007, 32001]


def test_smollm2_splits_numbers_into_digits(model_home: Path) -> None:
    """The embedded model's tokenizer gives a token a digit, as it was trained."""
    tokenizer: ChatTokenizer = load_chat_tokenizer(model_home / "models" / "smollm2-135m-instruct")
    assert len(tokenizer.encode("2024")) == 4
    assert tokenizer.decode(tokenizer.encode("2024 øre 🙂")) == "2024 øre 🙂"
