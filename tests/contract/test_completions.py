"""Plain completions, biased logits and what usage says of cached prompts, through the official client."""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.api_server import TINY, Server

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.modeling.folder import model_folder

PROMPT = "Once upon a time there was a smith who"


def ask(server: Server, **options: Any) -> Any:
    """A greedy plain completion."""
    return server.client().completions.create(**{"model": TINY, "prompt": PROMPT, "temperature": 0, **options})


def test_a_prompt_is_continued_as_it_stands(server: Server) -> None:
    """A text, a list of one text and its token ids give the same 16 tokens; usage counts the prompt's own ids."""
    tokenizer = load_chat_tokenizer(model_folder(server.ctx.home, TINY))
    ids = tokenizer.tokenizer.encode(PROMPT).ids
    answers = [ask(server, prompt=prompt) for prompt in (PROMPT, [PROMPT], ids)]
    assert len({answer.choices[0].text for answer in answers}) == 1
    assert answers[0].object == "text_completion"
    assert answers[0].choices[0].finish_reason == "length"
    assert (answers[0].usage.prompt_tokens, answers[0].usage.completion_tokens) == (len(ids), 16)


def test_a_streamed_completion_is_the_whole_one(server: Server) -> None:
    """The pieces joined are the text; usage comes last when asked for."""
    whole = ask(server, max_tokens=9)
    chunks = list(ask(server, max_tokens=9, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage.completion_tokens == 9
    assert chunks[-2].choices[0].finish_reason == "length"


def test_several_continuations_and_their_log_probabilities(server: Server) -> None:
    """n seeded choices differ; logprobs are lists side by side with offsets into the text."""
    answer = ask(server, n=3, temperature=1, seed=4, max_tokens=6, logprobs=2)
    assert len({choice.text for choice in answer.choices}) == 3
    found = answer.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == len(found.top_logprobs) == 6
    assert found.text_offset[0] == 0
    assert all(value <= 0 for value in found.token_logprobs)


@pytest.mark.parametrize(
    ("field", "value"), [("echo", True), ("best_of", 3), ("suffix", "end"), ("prompt", ["a", "b"]), ("logprobs", 9)]
)
def test_what_is_not_offered_is_refused_by_name(server: Server, field: str, value: Any) -> None:
    """A 400 that names the field."""
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(server, **{field: value})
    assert str(refusal.value.param).startswith(field)


def test_a_bias_forces_and_forbids_tokens(server: Server) -> None:
    """+100 on a token makes it come every time; -100 on it keeps it away; ids outside the vocabulary are refused."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
    client = server.client()
    tokenizer = load_chat_tokenizer(model_folder(server.ctx.home, TINY))
    (letter,) = tokenizer.encode("Q")

    def say(bias: dict[str, int]) -> str:
        answer = client.chat.completions.create(
            model=TINY, messages=messages, max_tokens=8, temperature=0, logit_bias=bias
        )
        return answer.choices[0].message.content or ""

    assert say({str(letter): 100}) == "Q" * 8
    free = say({})
    first = tokenizer.encode(free)[0]
    assert not say({str(first): -100}).startswith(free[0])
    with pytest.raises(openai.BadRequestError) as outside:
        say({"999999": 1})
    assert outside.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError):
        say({str(letter): 101})


def test_usage_tells_which_part_of_the_prompt_was_cached(server: Server) -> None:
    """A prompt asked a second time is cached but for its last token; several choices share one prompt."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "The same long question. " * 4}]
    client = server.client()
    usages = [client.chat.completions.create(model=TINY, messages=messages, max_tokens=4, n=2).usage for _ in range(2)]
    first, second = (usage for usage in usages if usage and usage.prompt_tokens_details)
    assert first.prompt_tokens_details is not None
    assert second.prompt_tokens_details is not None
    assert first.prompt_tokens_details.cached_tokens == 0
    assert second.prompt_tokens_details.cached_tokens == second.prompt_tokens - 1
    assert second.completion_tokens <= 8
