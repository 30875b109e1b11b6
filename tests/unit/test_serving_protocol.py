"""The lines between the API process and an engine process."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smedje import errors
from smedje.domain.conversations import FinishReason, Sampling
from smedje.serving.engine import GenerationRequest, TokenChunk, TokenCounts, TokenLogprob
from smedje.serving.protocol import (
    ERRORS,
    GenerateLine,
    PingLine,
    chunk_of_line,
    decode_reply,
    decode_request,
    encode_line,
    error_of_body,
    line_of_chunk,
    line_of_error,
    line_of_request,
    request_of_line,
)

ids = st.integers(0, 200_000)
floats = st.floats(-50, 2, allow_nan=False)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    frequency_penalty=floats,
    presence_penalty=floats,
    top_logprobs=st.none() | st.integers(0, 20),
)
requests = st.builds(
    GenerationRequest,
    tokens=st.lists(ids).map(tuple),
    sampling=samplings,
    max_tokens=st.none() | ids,
    adapter=st.none() | st.text(),
    stop_ids=st.frozensets(ids),
    grammar=st.none() | st.text(),
)
known = st.builds(TokenLogprob, token=ids, logprob=floats, top=st.lists(st.tuples(ids, floats), max_size=3).map(tuple))
chunks = st.builds(
    TokenChunk,
    tokens=st.lists(ids).map(tuple),
    logprobs=st.none() | st.lists(known, max_size=3).map(tuple),
    finish=st.none() | st.sampled_from(FinishReason),
    stop_token=st.none() | ids,
    usage=st.none() | st.builds(TokenCounts, prompt_tokens=ids, completion_tokens=ids),
)


@given(requests)
def test_a_request_crosses_unchanged(request: GenerationRequest) -> None:
    """What the client sends is what the engine reads."""
    line = decode_request(encode_line(line_of_request(request)))
    assert isinstance(line, GenerateLine)
    assert request_of_line(line) == request


@given(chunks)
def test_a_chunk_crosses_unchanged(chunk: TokenChunk) -> None:
    """What the engine says is what the client reads, on one line."""
    line = encode_line(line_of_chunk(chunk))
    assert line.count(b"\n") == 1
    assert chunk_of_line(decode_reply(line)) == chunk


def test_lines_look_as_documented() -> None:
    """The shapes that other programs may rely on."""
    token = encode_line(line_of_chunk(TokenChunk(tokens=(5,))))
    assert json.loads(token) == {"t": [5]}
    usage = TokenCounts(prompt_tokens=2, completion_tokens=3)
    end = encode_line(line_of_chunk(TokenChunk(finish=FinishReason.STOP, stop_token=2, usage=usage)))
    assert json.loads(end) == {
        "finish": "stop",
        "stop": 2,
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "cached_tokens": 0},
    }
    assert json.loads(encode_line(PingLine())) == {"op": "ping"}


@pytest.mark.parametrize("kind", ERRORS.values(), ids=lambda kind: kind.__name__)
def test_an_error_crosses_with_its_class(kind: type[errors.SmedjeError]) -> None:
    """Message, code and param come out as they went in."""
    line = decode_reply(encode_line(line_of_error(kind("No.", code="why", param="where"))))
    assert line.error is not None
    raised = error_of_body(line.error)
    assert type(raised) is kind
    assert (raised.message, raised.code, raised.param) == ("No.", "why", "where")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]\n",
        b'{"op":"sing"}\n',
        b'{"op":"generate","tokens":[1]}\n',
        b'{"op":"generate","tokens":[1],"sampling":{},"colour":1}\n',
        b'{"op":"generate","tokens":["a"],"sampling":{}}\n',
    ],
)
def test_a_wrong_line_is_refused(line: bytes) -> None:
    """Broken, incomplete or unknown fields are an invalid request."""
    with pytest.raises(errors.InvalidRequest):
        decode_request(line)
