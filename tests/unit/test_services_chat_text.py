"""Tokens to text with stop strings and log probabilities in step, on a byte tokenizer where a character may be many."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smedje.chat.calls import GENERIC
from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from smedje.modeling.tiny_random import write_tiny_llama
from smedje.services.chat_text import LOWEST_LOGPROB, AnswerCalls, AnswerText, TokenText
from smedje.serving.engine import TokenLogprob


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """One token a byte."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_llama(folder)
    return load_chat_tokenizer(folder)


def run(
    tokenizer: ChatTokenizer, tokens: list[int], *, stop: tuple[str, ...] = (), size: int = 1
) -> tuple[str, list[TokenText], bool]:
    """Text, log probabilities and whether a stop string ended it, fed `size` tokens at a time."""
    answer = AnswerText(tokenizer, stop=stop)
    text = ""
    told: list[TokenText] = []
    for start in range(0, len(tokens), size):
        part = tokens[start : start + size]
        piece, logprobs = answer.feed(part, [TokenLogprob(token=token, logprob=-1.0 - token) for token in part])
        text += piece
        told += logprobs
        if answer.stopped:
            return text, told, True
    piece, logprobs = answer.finish()
    return text + piece, told + list(logprobs), answer.stopped


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.text(max_size=30), stops=st.lists(st.text(min_size=1, max_size=4), max_size=4), size=st.integers(1, 7))
def test_the_text_ends_before_the_first_stop_string(
    tokenizer: ChatTokenizer, text: str, stops: list[str], size: int
) -> None:
    """However the tokens come, the text is the whole one, cut where the first complete stop string begins."""
    found, told, stopped = run(tokenizer, tokenizer.encode(text), stop=tuple(stops), size=size)
    whole, _, _ = run(tokenizer, tokenizer.encode(text))
    ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    assert stopped == bool(ends)
    assert found == (whole[: min(ends)[1]] if ends else whole)
    if not stopped:
        assert len(told) == len(tokenizer.encode(text))


def test_log_probabilities_belong_to_the_text_that_was_let_through(tokenizer: ChatTokenizer) -> None:
    """Tokens of the stop string, and of text held back before it, are not told; those before it are, in order."""
    text, told, stopped = run(tokenizer, tokenizer.encode("abENDcd"), stop=("END",))
    assert (text, stopped) == ("ab", True)
    assert [token.text for token in told] == ["a", "b"]
    text, told, stopped = run(tokenizer, tokenizer.encode("abEN"), stop=("END",))
    assert (text, stopped) == ("abEN", False)
    assert [token.text for token in told] == ["a", "b", "E", "N"]


def test_every_byte_of_a_long_character_is_told_with_it(tokenizer: ChatTokenizer) -> None:
    """A character of four tokens appears when its last has come, together with all four log probabilities."""
    answer = AnswerText(tokenizer, stop=())
    tokens = tokenizer.encode("🦊")
    assert len(tokens) == 4
    seen = [answer.feed([token], [TokenLogprob(token=token, logprob=-0.5)]) for token in tokens]
    assert [text for text, _ in seen] == ["", "", "", "🦊"]
    assert [len(told) for _, told in seen] == [0, 0, 0, 4]
    raw = b"".join(token.text.encode("utf-8", "surrogateescape") for token in seen[-1][1])
    assert raw == "🦊".encode()


def test_an_impossible_token_has_a_finite_log_probability(tokenizer: ChatTokenizer) -> None:
    """Minus infinity, which JSON lacks, becomes the lowest value that is told."""
    answer = AnswerText(tokenizer, stop=())
    token = tokenizer.encode("a")[0]
    logprob = TokenLogprob(token=token, logprob=float("-inf"), top=((token, float("-inf")),))
    _, (told,) = answer.feed([token], [logprob])
    assert told == TokenText(text="a", logprob=LOWEST_LOGPROB, top=(("a", LOWEST_LOGPROB),))


def test_tokens_count_once_their_text_is_let_through(tokenizer: ChatTokenizer) -> None:
    """Bytes of a character count with its last one, the beginning of a stop string once it turns out to be none."""
    answer = AnswerText(tokenizer, stop=("END",))
    counted = []
    for token in tokenizer.encode("aæENd"):
        answer.feed([token], None)
        counted.append(answer.begun)
    assert counted == [1, 1, 3, 3, 3, 6]


def test_what_may_become_a_call_is_held(tokenizer: ChatTokenizer) -> None:
    """Text is held while it may begin a call and in what divides calls, not in their arguments."""
    calls = AnswerCalls(GENERIC)
    call = ('<tool_call>\n{"name": "f', '", "arguments": ', '{"a"', ": 1}", "}\n</tool_call>")
    held = []
    for piece in ("well", " <tool", "box ", *call):
        calls.feed(piece, last=False)
        held.append(calls.holding)
    assert held == [False, True, True, True, False, False, False, True]
    assert not AnswerCalls(None).holding
