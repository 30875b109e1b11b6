"""Wrong requests, one a row: each is refused with the right status, code and field, in the one error shape."""

import json
from typing import Any

import pytest
from tests.api_server import TINY, Server, chat_lines

ANSWER = [{"role": "user", "content": "hi"}]
JOBS = "/v1/fine_tuning/jobs"
CHAT = "/v1/chat/completions"


def refused(status: int, answer: Any) -> tuple[str, str | None, str]:
    """Code, param and message of a refusal, after checking its shape and status."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    return body["error"]["code"], body["error"]["param"], body["error"]["message"]


@pytest.fixture(scope="module")
def train(server: Server) -> str:
    """Id of a good training file."""
    return server.upload(chat_lines(12))


@pytest.mark.parametrize(
    ("change", "code", "param", "words"),
    [
        ({"model": "nonsense-model"}, "model_not_found", "model", "nonsense-model"),
        ({"model": "tiny-randm"}, "model_not_found", "model", f"Did you mean {TINY}"),
        ({"model": "phi-3-mini-4k-instruct"}, "model_not_installed", "model", "smedje models pull phi-3-mini-4k"),
        ({"model": "ft:broken"}, "model_not_found", "model", "ft:broken"),
        ({"model": "ft:tiny-random:default::AbCd1234"}, "model_not_found", "model", "AbCd1234"),
        ({"training_file": "file-unknown"}, "file_not_found", "training_file", "file not found: file-unknown"),
        ({"validation_file": "file-unknown"}, "file_not_found", "validation_file", "file not found"),
        ({"suffix": "x" * 65}, "invalid_suffix", "suffix", "64"),
        ({"suffix": "a:b"}, "invalid_suffix", "suffix", "'a:b'"),
        ({"seed": -1}, "invalid_value", "seed", "2147483647"),
        ({"seed": 2**31}, "invalid_value", "seed", "2147483648"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "invalid_metadata", "metadata", "17"),
        ({"metadata": {"k" * 65: "x"}}, "invalid_metadata", "metadata", "64"),
        ({"metadata": {"k": "x" * 513}}, "invalid_metadata", "metadata", "512"),
        ({"metadata": {"k": 3}}, "invalid_value", "metadata.k", "string"),
        ({"integrations": [{"type": "wandb"}]}, "invalid_integration", "integrations[0]", "project"),
        ({"training_fil": "x"}, "unknown_field", "training_fil", "training_fil"),
        ({"hyperparameters": {"n_epoch": 3}}, "unknown_hyperparameter", "hyperparameters.n_epoch", "n_epochs"),
        ({"hyperparameters": {"n_epochs": 51}}, "invalid_value", "hyperparameters.n_epochs", "1 to 50"),
        ({"hyperparameters": {"n_epochs": 0}}, "invalid_value", "hyperparameters.n_epochs", "1 to 50"),
        ({"hyperparameters": {"n_epochs": 1.5}}, "invalid_value", "hyperparameters.n_epochs", "1.5"),
        ({"hyperparameters": {"n_epochs": True}}, "invalid_value", "hyperparameters.n_epochs", "True"),
        ({"hyperparameters": {"batch_size": 257}}, "invalid_value", "hyperparameters.batch_size", "256"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "invalid_value", None, "above 0"),
        ({"hyperparameters": {"learning_rate_multiplier": 1e9}}, "invalid_value", "learning_rate_multiplier", "0.01"),
        ({"method": {"type": "dpo"}}, "wrong_data_form", "training_file", "preference pairs"),
        ({"method": {"type": "reinforcement"}}, "unsupported_method", "method.type", "supervised"),
        ({"method": {"type": "magic"}}, "invalid_value", "method.type", "magic"),
        ({"method": {}}, "missing_field", "method.type", "supervised"),
        ({"method": {"type": "supervised", "extra": 1}}, "unknown_field", "method.extra", "extra"),
        ({"method": {"type": "supervised"}, "hyperparameters": {"n_epochs": 1}}, "conflicting_fields", None, "method"),
        ({"smedje": {"lora_rnk": 8}}, "invalid_option", "smedje.lora_rnk", "lora_rank"),
        ({"smedje": {"lora_rank": 0}}, "invalid_option", "smedje.lora_rank", "0"),
        ({"smedje": {"learning_rate": 0.9}}, "invalid_value", "smedje.learning_rate", "0.9"),
        (
            {"smedje": {"learning_rate": 1e-3}, "hyperparameters": {"learning_rate_multiplier": 2}},
            "conflicting_fields",
            "smedje.learning_rate",
            "exclude",
        ),
    ],
)
def test_a_wrong_job_is_refused_by_name(
    server: Server, train: str, change: dict[str, Any], code: str, param: str | None, words: str
) -> None:
    """Each wrong field of a job's creation is a 400 that names it; no job is made. `param` None: not looked at."""
    before = server.get(JOBS).json()["data"]
    answer = server.post(JOBS, {"model": TINY, "training_file": train, **change})
    found_code, found_param, message = refused(400, answer)
    assert (found_code, found_param if param else None) == (code, param)
    assert words in message
    assert server.get(JOBS).json()["data"] == before
    estimate = server.post("/api/fine_tuning/estimate", {"model": TINY, "training_file": train, **change})
    assert refused(400, estimate)[0] == code


def test_missing_fields_are_named(server: Server) -> None:
    """Without a required field the answer names it."""
    assert refused(400, server.post(JOBS, {"model": TINY}))[:2] == ("missing_field", "training_file")
    assert refused(400, server.post(CHAT, {"model": TINY}))[:2] == ("missing_field", "messages")


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "user"}]}, "missing_field", "messages[0].content"),
        ({"messages": [{"content": "hi"}]}, "missing_field", "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "unrecognized_role", "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "invalid_tool_messages", "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "hi", "weight": 1}]}, "unknown_field", "messages[0].weight"),
        ({"messages": "hi"}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, "messages[0].content[0]"),
        ({"temperature": 2.1}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_value", "temperature"),
        ({"top_p": -0.1}, "invalid_value", "top_p"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 129}, "invalid_value", "n"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "conflicting_fields", "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "invalid_value", "stop"),
        ({"stop": ""}, "invalid_value", "stop[0]"),
        ({"seed": 2**63}, "invalid_value", "seed"),
        ({"top_logprobs": 3}, "invalid_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "unknown_field", "stream_options.usage"),
        ({"tools": [{"type": "function"}]}, "invalid_value", "tools[0].function"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"functions": [{"name": "f"}]}, "unsupported_field", "functions"),
        ({"response_format": {"type": "json_schema"}}, "missing_field", "response_format.json_schema"),
        ({"modalities": ["audio"]}, "unsupported_field", "modalities"),
        ({"tempreature": 1}, "unknown_field", "tempreature"),
    ],
)
def test_a_wrong_chat_request_is_refused_by_name(
    server: Server, change: dict[str, Any], code: str | None, param: str
) -> None:
    """Each wrong field of a chat request is a 400 that names it. `code` None: not looked at."""
    answer = server.post(CHAT, {"model": TINY, "messages": ANSWER, "max_tokens": 1, **change})
    found_code, found_param, _ = refused(400, answer)
    assert (found_code if code else None, found_param) == (code, param)


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"[1]", b'"text"', b"null", b"\xff\xfe{", b'{"model": NaN}', b"[" * 100_000, b'{"model": "\\ud800"}'],
    ids=["cut", "nothing", "list", "string", "null", "utf-16", "nan", "deep", "half a surrogate pair"],
)
def test_a_body_that_is_no_json_object_is_a_400(server: Server, body: bytes) -> None:
    """Whatever the bytes are, the answer is a 400 in the error shape, never a server error."""
    for path in (JOBS, CHAT, "/api/deployments"):
        with server.http() as http:
            refused(400, http.post(path, content=body, headers={"content-type": "application/json"}))


def test_json_under_another_content_type_is_told_what_to_send(server: Server) -> None:
    """A body sent as a form is refused with the header to send."""
    with server.http() as http:
        answer = http.post(
            CHAT, content=json.dumps({"model": TINY}), headers={"content-type": "application/x-www-form-urlencoded"}
        )
    assert "Content-Type: application/json" in refused(400, answer)[2]


def test_json_larger_than_the_limit_is_a_413(server: Server) -> None:
    """A JSON body beyond the limit is refused before it is parsed."""
    with server.http() as http:
        answer = http.post(CHAT, content=b" " * (17 * 2**20), headers={"content-type": "application/json"})
    assert refused(413, answer)[0] == "too_large"


def test_nine_examples_are_too_few(server: Server) -> None:
    """OpenAI's words and code for a training file with fewer than ten examples; as a validation file nine are fine."""
    nine, twelve = server.upload(chat_lines(9)), server.upload(chat_lines(12))
    code, param, message = refused(400, server.post(JOBS, {"model": TINY, "training_file": nine}))
    assert (code, param) == ("invalid_n_examples", "training_file")
    assert message == "Training file has 9 example(s), but must have at least 10 examples"
    job = server.post(JOBS, {"model": TINY, "training_file": twelve, "validation_file": nine})
    assert job.status_code == 200, job.text


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{not json}", "invalid_json"),
        (b'{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}', None),
        (b'{"messages": [{"role": "user", "content": "b"}]}', None),
        (b'{"text": "x"}', None),
    ],
    ids=["not json", "wrong role order", "no answer", "no messages"],
)
def test_a_job_on_bad_data_cites_its_first_problem(server: Server, line: bytes, code: str | None) -> None:
    """A file with an error is kept with its report; a job on it is a 400 that names line and remedy."""
    file = server.upload(chat_lines(10) + line + b"\n" + chat_lines(3, text="more"))
    found = server.get(f"/v1/files/{file}").json()
    assert found["status"] == "error"
    assert "Line 11" in found["status_details"]
    report = server.get(f"/api/files/{file}/report").json()
    assert report["verdict"] == "error"
    assert 11 in [problem["line"] for problem in report["problems"]]
    found_code, param, message = refused(400, server.post(JOBS, {"model": TINY, "training_file": file}))
    assert (found_code, param) == ("invalid_training_data", "training_file")
    assert "Line 11" in message
    if code:
        assert code in [problem["code"] for problem in report["problems"]]


def test_a_byte_order_mark_is_welcome(server: Server) -> None:
    """A file that begins with a BOM, which Azure demands, is processed like any other."""
    file = server.upload(b"\xef\xbb\xbf" + chat_lines(12))
    assert server.get(f"/v1/files/{file}").json()["status"] == "processed"


def test_a_results_file_cannot_be_trained_on(server: Server) -> None:
    """A file of another purpose is refused with the purpose that is needed."""
    from dataclasses import replace

    from smedje.domain.files import FilePurpose
    from smedje.services.files import get_file
    from smedje.store import files as rows

    made = get_file(server.ctx, server.project, server.upload(chat_lines(12)))
    with server.ctx.database.transaction() as tx:
        rows.insert_file(tx, replace(made, id="file-results", purpose=FilePurpose.FINE_TUNE_RESULTS))
    code, param, message = refused(400, server.post(JOBS, {"model": TINY, "training_file": "file-results"}))
    assert (code, param) == ("invalid_file_purpose", "training_file")
    assert "fine-tune" in message


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files?limit=0",
        "/v1/files?limit=10001",
        "/v1/files?order=up",
        "/v1/files?purpose=fun",
        "/v1/files?limt=3",
        "/v1/fine_tuning/jobs?limit=101",
        "/v1/fine_tuning/jobs?limit=x",
        "/v1/fine_tuning/jobs?metadata[k=v",
        "/v1/fine_tuning/jobs?offset=2",
        "/api/deployments?limit=0",
        "/api/catalog?serch=phi",
    ],
)
def test_a_wrong_query_is_a_400_that_names_it(server: Server, path: str) -> None:
    """Bounds and names of query parameters are checked like fields."""
    param = refused(400, server.get(path))[1]
    assert param is not None
    assert path.split("?")[1].startswith(param)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("PUT", "/v1/files", 405),
        ("GET", "/v1/files/file-none", 404),
        ("GET", "/v1/files/file-none/content", 404),
        ("DELETE", "/v1/files/file-none", 404),
        ("GET", "/v1/files?after=file-none", 404),
        ("GET", "/v1/fine_tuning/jobs/ftjob-none", 404),
        ("GET", "/v1/fine_tuning/jobs?after=ftjob-none", 404),
        ("POST", "/v1/fine_tuning/jobs/ftjob-none/cancel", 404),
        ("POST", "/v1/fine_tuning/jobs/ftjob-none/pause", 404),
        ("POST", "/v1/fine_tuning/jobs/ftjob-none/resume", 404),
        ("GET", "/v1/fine_tuning/jobs/ftjob-none/events", 404),
        ("GET", "/v1/fine_tuning/jobs/ftjob-none/checkpoints", 404),
        ("GET", "/v1/models/none", 404),
        ("DELETE", "/v1/models/none", 404),
        ("DELETE", f"/v1/models/{TINY}", 400),
        ("GET", "/api/deployments/none", 404),
        ("DELETE", "/api/deployments/none", 404),
        ("GET", "/api/files/file-none/report", 404),
    ],
)
def test_what_is_not_there_is_told_in_the_error_shape(server: Server, method: str, path: str, status: int) -> None:
    """Unknown routes, wrong methods and unknown ids answer with their status in the one shape."""
    with server.http() as http:
        refused(status, http.request(method, path))
