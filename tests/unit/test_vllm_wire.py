"""What vLLM says, as chunks and errors: the events that no healthy server sends at will."""

from dataclasses import replace

import pytest

from smedje.domain.conversations import FinishReason, Sampling
from smedje.errors import InternalError, InvalidRequest, SmedjeError, Unavailable
from smedje.serving.engine import GenerationRequest, TokenChunk, TokenCounts
from smedje.serving.vllm_engine import preemptions, token_capacity
from smedje.serving.vllm_wire import Answer, read_event

REQUEST = GenerationRequest(tokens=(5, 6, 7), sampling=Sampling(temperature=0.0), stop_ids=frozenset({2}))
USAGE = '{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}'


def choice(tokens: list[int], rest: str) -> str:
    """An event with one choice."""
    return f'{{"choices":[{{"index":0,"text":"?","token_ids":{tokens},{rest}}}]}}'


def taken(*events: str, request: GenerationRequest = REQUEST) -> list[TokenChunk]:
    """The chunks of a stream of events."""
    answer = Answer(request)
    return [chunk for event in events for chunk in answer.take(read_event(event))]


@pytest.mark.parametrize("reason", ["2", "null"])
def test_the_last_token_of_a_stop_is_the_stop_token(reason: str) -> None:
    """Named, or the model's own end, which vLLM does not name; tokens that came together are chunks of their own."""
    end = choice([8, 9, 2], f'"finish_reason":"stop","stop_reason":{reason}')
    first, second, last = taken(end, USAGE)
    assert (first.tokens, second.tokens, last.tokens) == ((8,), (9,), ())
    assert (last.finish, last.stop_token) == (FinishReason.STOP, 2)
    assert last.usage == TokenCounts(prompt_tokens=3, completion_tokens=3)
    assert last.usage is not None
    assert last.usage.cached_tokens == 2


def test_an_end_that_comes_alone_is_a_chunk_without_tokens() -> None:
    """The limit may be told after the last token."""
    plain, last = taken(
        choice([8], '"finish_reason":null'),
        choice([], '"finish_reason":"length"'),
        USAGE.replace('"prompt_tokens_details":{"cached_tokens":2}', '"prompt_tokens_details":null'),
    )
    assert (plain.tokens, last.tokens, last.finish) == ((8,), (), FinishReason.LENGTH)
    assert last.usage == TokenCounts(prompt_tokens=3, completion_tokens=1)


@pytest.mark.parametrize(
    ("code", "grammar", "kind", "told"),
    [
        ("400", None, InvalidRequest, "invalid_value"),
        ("400", "start: x", InvalidRequest, "grammar_refused"),
        ("500", None, Unavailable, "engine_gone"),
        ("503", "start: x", Unavailable, "engine_gone"),
        ("null", None, Unavailable, "engine_gone"),
        ("404", None, InternalError, None),
    ],
)
def test_errors_are_the_requests_or_may_be_asked_again(
    code: str, grammar: str | None, kind: type[SmedjeError], told: str | None
) -> None:
    """By vLLM's status; what it says of a request is passed on."""
    with pytest.raises(kind) as raised:
        taken(f'{{"error":{{"message":"no such thing","code":{code}}}}}', request=replace(REQUEST, grammar=grammar))
    assert told in (None, raised.value.code)
    assert ("no such thing" in raised.value.message) == (kind is InvalidRequest)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (choice([8], '"finish_reason":"abort"'), Unavailable),
        (choice([8], '"finish_reason":"stop","stop_reason":"a text"'), InternalError),
        (choice([], '"finish_reason":"stop","stop_reason":null'), InternalError),
        ('{"choices":7}', InternalError),
        ("nonsense", InternalError),
    ],
)
def test_what_cannot_be_is_an_error(event: str, kind: type[SmedjeError]) -> None:
    """An answer given up, an end without its token, and events of no known shape."""
    with pytest.raises(kind):
        taken(event)


def test_tokens_without_their_log_probabilities_are_an_error() -> None:
    """Asked for and not there: nothing is made up."""
    with pytest.raises(InternalError):
        taken(choice([8], '"logprobs":null'), request=replace(REQUEST, sampling=Sampling(top_logprobs=1)))


def test_numbers_are_read_from_metrics() -> None:
    """Places and preemptions, and 0 where a server does not tell."""
    page = (
        'vllm:cache_config_info{block_size="16",kv_cache_size_tokens="4096",x="y"} 1.0\n'
        'vllm:num_preemptions_total{engine="0"} 2.0\nvllm:num_preemptions_total{engine="1"} 3.0\n'
    )
    assert (token_capacity(page), preemptions(page)) == (4096, 5)
    assert (token_capacity(""), preemptions("")) == (0, 0)
