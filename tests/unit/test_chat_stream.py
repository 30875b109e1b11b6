import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_models import write_model_folder

from smedje.chat.stream import IncrementalDecoder, StopStrings
from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer

KINDS = ("smollm2", "qwen-3", "phi-3", "gemma-2")
TEXTS = ["Hello, how are you?", " two  spaces", "19 øre for 東京 🙂👩‍👩‍👧", "a\n\n  b\tc", "\ufffd end", "", "  "]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return load_chat_tokenizer(write_model_folder(tmp_path_factory.mktemp("m") / request.param, request.param))


def streamed(tokenizer: ChatTokenizer, ids: list[int], *, skip_special: bool = True) -> tuple[str, list[str]]:
    decoder = IncrementalDecoder(tokenizer, skip_special=skip_special)
    pieces = [decoder.feed([number]) for number in ids]
    return "".join(pieces) + decoder.finish(), pieces


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_equals_whole_text(tokenizer: ChatTokenizer, text: str) -> None:
    """One id at a time gives the same text as all at once, and no piece ends in half a character."""
    ids = tokenizer.encode(text)
    whole, pieces = streamed(tokenizer, ids)
    assert whole == tokenizer.decode(ids)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_streamed_text_equals_whole_text_for_any_ids(tokenizer: ChatTokenizer, seed: int) -> None:
    """Ids that no tokenizer would give, such as single bytes of characters and special tokens, also agree."""
    draw = random.Random(seed)
    ids = [draw.randrange(tokenizer.vocabulary_size) for _ in range(draw.randrange(1, 25))]
    for skip_special in (True, False):
        assert streamed(tokenizer, ids, skip_special=skip_special)[0] == tokenizer.decode(
            ids, skip_special=skip_special
        )


def test_words_come_as_soon_as_they_are_certain(tokenizer: ChatTokenizer) -> None:
    """Plain words are not held back: each id brings its text at once."""
    ids = tokenizer.encode("Hello, how are you?")
    _, pieces = streamed(tokenizer, ids)
    assert all(pieces[1:])


def test_many_ids_at_once_give_the_same_text(tokenizer: ChatTokenizer) -> None:
    """Feeding in groups changes nothing."""
    ids = tokenizer.encode("Blåbærgrød 🙂 " * 5)
    decoder = IncrementalDecoder(tokenizer)
    text = "".join(decoder.feed(ids[start : start + 7]) for start in range(0, len(ids), 7))
    assert text + decoder.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("model", ["smollm2-135m-instruct", "phi-3-tiny-random"])
def test_streamed_text_equals_whole_text_for_real_tokenizers(model_home: Path, model: str) -> None:
    """The same with the tokenizers of installed models, texts and random ids."""
    tokenizer = load_chat_tokenizer(model_home / "models" / model)
    draw = random.Random(3)
    cases = [tokenizer.encode(text) for text in TEXTS]
    cases += [[draw.randrange(tokenizer.vocabulary_size) for _ in range(30)] for _ in range(100)]
    cases += [[draw.randrange(3, 400) for _ in range(30)] for _ in range(100)]
    for ids in cases:
        assert streamed(tokenizer, ids)[0] == tokenizer.decode(ids)


def through(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop = StopStrings(stops)
    text = "".join(stop.feed(piece) for piece in pieces)
    return text + ("" if stop.stopped else stop.finish()), stop.stopped


@pytest.mark.parametrize(
    ("stops", "text", "expected", "stopped"),
    [
        (["###"], "answer ### more", "answer ", True),
        (["###"], "a ## b", "a ## b", False),
        (["###"], "ends with ##", "ends with ##", False),
        (["###"], "####", "", True),
        (["ab", "abc"], "xabcd", "x", True),
        (["abcd", "bc"], "abcd", "a", True),
        (["\nUser:"], "Hi\nUse\nUser: x", "Hi\nUse", True),
        ([], "free", "free", False),
        ([""], "free", "free", False),
    ],
)
def test_stop_strings_cut_the_same_however_text_comes(
    stops: list[str], text: str, expected: str, stopped: bool
) -> None:
    """The text before the first complete stop string, for letters one by one, the whole and every cut in two."""
    cuts = [[text], list(text)] + [[text[:cut], text[cut:]] for cut in range(len(text))]
    assert all(through(stops, pieces) == (expected, stopped) for pieces in cuts)


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    pieces=st.lists(st.text("abc", max_size=5), max_size=8),
)
def test_stop_strings_do_not_depend_on_the_pieces(stops: list[str], pieces: list[str]) -> None:
    """Any cutting gives what letter by letter gives, and nothing of a stop string gets through."""
    text, stopped = through(stops, pieces)
    assert (text, stopped) == through(stops, list("".join(pieces)))
    assert not stopped or not any(stop in text for stop in stops)


def test_only_a_possible_stop_string_is_held_back() -> None:
    """Text comes at once unless it may be the beginning of a stop string."""
    stop = StopStrings(["<end>"])
    assert stop.feed("hello ") == "hello "
    assert stop.feed("<e") == ""
    assert stop.feed("m") == "<em"
    assert stop.feed("x<end> y") == "x"
    assert stop.stopped
    assert stop.feed("more") == ""
