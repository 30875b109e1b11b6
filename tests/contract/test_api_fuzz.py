"""Whatever JSON is sent, the answer is not a server error. Seeded, against a live server."""

from collections.abc import Iterator
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.api_server import TINY, Server, chat_lines

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(
        ["auto", "supervised", "user", "assistant", "system", "tool", "text", TINY, "\0", "\u202e", "ft:a:b:c:d"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
)
CHAT_FIELDS = (
    "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed", "stream",
    "stream_options", "logprobs", "top_logprobs", "frequency_penalty", "presence_penalty", "tools", "response_format",
    "logit_bias", "user", "metadata", "made_up",
)  # fmt: skip
JOB_FIELDS = (
    "model", "validation_file", "suffix", "seed", "hyperparameters", "method", "metadata", "smedje", "integrations",
    "made_up",
)  # fmt: skip
HYPERPARAMETERS = st.dictionaries(st.sampled_from(["n_epochs", "batch_size", "learning_rate_multiplier"]), SCALARS)
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls", "refusal"]), VALUES, max_size=4),
    max_size=3,
)
FUZZ = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx2.Client]:
    """One connection for all examples."""
    with server.http() as client:
        yield client


@FUZZ
@given(
    change=st.dictionaries(st.sampled_from(CHAT_FIELDS), VALUES, max_size=4),
    messages=st.one_of(st.just([{"role": "user", "content": "hi"}]), MESSAGES),
)
def test_no_chat_request_is_a_server_error(http: httpx2.Client, change: dict[str, object], messages: object) -> None:
    """Random values in random fields of a chat request are served or refused with a 4xx."""
    body = {"model": TINY, "messages": messages, **change}
    if not isinstance(body.get("max_completion_tokens"), int):
        body["max_tokens"] = 2
    body["n"] = 1 if body.get("n") != 0 else 0
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code < 500, (body, answer.text)


@FUZZ
@given(
    change=st.dictionaries(st.sampled_from(JOB_FIELDS), VALUES, max_size=4), hyperparameters=st.none() | HYPERPARAMETERS
)
def test_no_job_request_is_a_server_error(
    server: Server, http: httpx2.Client, change: dict[str, object], hyperparameters: object
) -> None:
    """Random values in random fields of a job's creation make a job or are refused with a 4xx."""
    files = http.get("/v1/files").json()["data"]
    file = files[0]["id"] if files else server.upload(chat_lines(10))
    body = {"model": TINY, "training_file": file, "hyperparameters": hyperparameters, **change}
    answer = http.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code < 500, (body, answer.text)


@FUZZ
@given(body=st.dictionaries(st.sampled_from(["name", "model", "made_up"]), VALUES, max_size=3))
def test_no_deployment_request_is_a_server_error(http: httpx2.Client, body: dict[str, object]) -> None:
    """Random deployments are made or refused with a 4xx."""
    answer = http.post("/api/deployments", json=body)
    assert answer.status_code < 500, (body, answer.text)


@FUZZ
@given(name=st.text(min_size=1, max_size=20))
def test_no_path_is_a_server_error(http: httpx2.Client, name: str) -> None:
    """Random ids and names in paths are looked up and not found, or refused."""
    part = quote(name, safe="")
    for path in ("/v1/files/", "/v1/fine_tuning/jobs/", "/v1/models/", "/api/deployments/", "/v1/files?after="):
        answer = http.get(path + part)
        assert answer.status_code < 500, (path, name, answer.text)
