"""Azure's paths against a live server: the unmodified AzureOpenAI client, and the model inference route as sent raw."""

import json

import openai
import pytest
from openai import AzureOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from tests.api_server import TINY, Server, chat_lines

from smedje.services import deployments

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
VERSION = "2024-10-21"


def azure(server: Server) -> AzureOpenAI:
    """The official Azure client, never retrying."""
    return AzureOpenAI(azure_endpoint=server.url, api_key=server.key, api_version=VERSION, max_retries=0)


@pytest.fixture(scope="module")
def deployed(server: Server) -> str:
    """The project's only deployment."""
    return deployments.create_deployment(server.ctx, server.project, name="front", model=TINY).name


def test_a_deployment_answers_under_its_own_path(server: Server, deployed: str) -> None:
    """The client puts the deployment's name into the path; plain and streamed answers are those of /v1."""
    with azure(server) as client:
        whole = client.chat.completions.create(model=deployed, messages=QUESTION, max_tokens=6, temperature=0)
        pieces = list(
            client.chat.completions.create(model=deployed, messages=QUESTION, max_tokens=6, temperature=0, stream=True)
        )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    plain = server.client().chat.completions.create(model=TINY, messages=QUESTION, max_tokens=6, temperature=0)
    assert whole.choices[0].message.content == text == plain.choices[0].message.content
    assert whole.model == deployed


def test_the_v1_paths_are_openais(server: Server) -> None:
    """/openai/v1 takes the plain OpenAI client, with or without api-version."""
    with OpenAI(
        base_url=f"{server.url}/openai/v1", api_key=server.key, max_retries=0, default_query={"api-version": "preview"}
    ) as client:
        assert client.chat.completions.create(model=TINY, messages=QUESTION, max_tokens=3).choices
        assert TINY in [model.id for model in client.models.list()]
        made = client.files.create(file=("a.jsonl", chat_lines(10)), purpose="fine-tune")
        assert made.id in [file.id for file in client.files.list()]
        job = client.fine_tuning.jobs.create(model=TINY, training_file=made.id)
        assert job.status == "validating_files"


def test_classic_authoring_speaks_azures_words(server: Server) -> None:
    """Files, jobs and events through the Azure client: 201, `pending`, -1 for auto, null for empty lists."""
    with azure(server) as client:
        file = client.files.create(file=("train.jsonl", chat_lines(12)), purpose="fine-tune")
        assert client.files.wait_for_processing(file.id).status == "processed"
        assert client.files.content(file.id).read() == chat_lines(12)
        raw = client.fine_tuning.jobs.with_raw_response.create(
            model=TINY,
            training_file=file.id,
            suffix="try-1",
            hyperparameters={"n_epochs": 2, "batch_size": -1},
            extra_body={"trainingType": "Standard"},
        )
        body = json.loads(raw.http_response.text)
        assert (raw.status_code, body["status"]) == (201, "pending")
        assert raw.headers["location"].endswith(body["id"])
        assert body["hyperparameters"] == {"n_epochs": 2, "batch_size": -1, "learning_rate_multiplier": 1.0}
        assert (body["organization_id"], body["integrations"], body["result_files"]) == (None, None, None)
        assert next(job.id for job in client.fine_tuning.jobs.list()) == body["id"]
        events = server.post(f"/openai/fine_tuning/jobs/{body['id']}/events?api-version={VERSION}", {}).json()
        assert events["data"][-1]["message"] == f"Created fine-tuning job: {body['id']}"
        assert client.fine_tuning.jobs.cancel(body["id"]).status == "cancelled"
        assert client.fine_tuning.jobs.checkpoints.list(body["id"]).data == []
        assert TINY in [model.id for model in client.models.list()]
    with server.http() as http:
        assert http.delete(f"/openai/files/{file.id}").status_code == 204


def test_errors_have_azures_shape(server: Server) -> None:
    """Authoring has Azure's general code with ours inside; inference keeps the special code; v1 stays OpenAI's."""
    with azure(server) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.fine_tuning.jobs.retrieve("ftjob-nothing")
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(model=TINY, messages=QUESTION, temperature=3)
        with pytest.raises(openai.BadRequestError) as suffix:
            client.fine_tuning.jobs.create(model=TINY, training_file="file-x", suffix="a.b")
    assert missing.value.code == "notFound"
    assert missing.value.body["innererror"]["code"] == "fine_tune_not_found"  # type: ignore[index]
    assert (bad.value.code, bad.value.param, bad.value.body["target"]) == (  # type: ignore[index]
        "invalid_value",
        "temperature",
        "temperature",
    )
    assert suffix.value.code == "invalidPayload"
    plain = server.get("/openai/v1/fine_tuning/jobs/ftjob-nothing").json()["error"]
    assert set(plain) == {"message", "type", "param", "code"}


def test_the_inference_route_needs_no_model(server: Server, deployed: str) -> None:
    """With one deployment a body without model is answered by it, and /info names its model."""
    with server.http() as http:
        made = http.post(
            "/models/chat/completions?api-version=2024-05-01-preview", json={"messages": QUESTION, "max_tokens": 3}
        )
        infos = [http.get(path).json() for path in ("/info", "/models/info", f"/openai/deployments/{deployed}/info")]
    assert made.json()["model"] == deployed
    assert infos == [{"model_name": TINY, "model_type": "chat-completion", "model_provider_name": TINY}] * 3


@pytest.mark.parametrize(("extra", "status"), [(None, 400), ("error", 400), ("pass-through", 400), ("drop", 200)])
def test_the_header_decides_about_unknown_fields(server: Server, extra: str | None, status: int) -> None:
    """`extra-parameters: drop` leaves unknown fields out; otherwise the first is refused by name."""
    body = {"model": TINY, "messages": QUESTION, "max_tokens": 2, "safe_mode": True}
    headers = {} if extra is None else {"extra-parameters": extra}
    with server.http() as http:
        found = http.post("/models/chat/completions", json=body, headers=headers)
    assert found.status_code == status
    if status == 400:
        assert found.json()["error"]["param"] == "safe_mode"


def test_the_api_key_header_is_enough(server: Server) -> None:
    """Azure's header alone opens the door; without any key the refusal is a 401."""
    with server.http() as http:
        del http.headers["authorization"]
        assert http.get("/openai/models", headers={"api-key": server.key}).status_code == 200
        assert http.get("/openai/models").status_code == 401
