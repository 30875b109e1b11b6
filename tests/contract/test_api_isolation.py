"""Two projects on one server: what belongs to one does not exist for the other."""

from typing import Any

import pytest
from tests.api_server import TINY, Server, chat_lines, make_project

from smedje.domain.catalog import FineTunedModel
from smedje.domain.jobs import Checkpoint
from smedje.store import catalog as model_rows
from smedje.store import jobs as job_rows

MODEL = "ft:tiny-random:default:mine:AbCd1234"
CHECKPOINT = MODEL + ":ckpt-step-3"


@pytest.fixture(scope="module")
def stranger(server: Server) -> str:
    """An owner's key of another project."""
    return make_project(server.ctx, "other")[1]


@pytest.fixture(scope="module")
def ours(server: Server) -> dict[str, str]:
    """One of everything, in the first project."""
    file = server.upload(chat_lines(12))
    job = server.post("/v1/fine_tuning/jobs", {"model": TINY, "training_file": file}).json()["id"]
    with server.ctx.database.transaction() as tx:
        model_rows.insert_model(
            tx,
            FineTunedModel(
                id=MODEL,
                project_id=server.project.id,
                base_model=TINY,
                job_id=job,
                suffix="mine",
                checkpoint_key="runs/run-x/checkpoints/3",
                step=3,
                created_at=5,
            ),
        )
        job_rows.insert_checkpoint(
            tx,
            Checkpoint(
                id="ftckpt_x",
                project_id=server.project.id,
                job_id=job,
                step=3,
                model_name=CHECKPOINT,
                key="runs/run-x/checkpoints/3",
                metrics={"train_loss": 1.5},
                created_at=5,
            ),
        )
    assert server.post("/api/deployments", {"name": "ours", "model": MODEL}).status_code == 200
    return {"file": file, "job": job}


ROUTES = [
    ("GET", "/v1/files/{file}"),
    ("GET", "/v1/files/{file}/content"),
    ("GET", "/api/files/{file}/report"),
    ("GET", "/v1/files?after={file}"),
    ("GET", "/v1/fine_tuning/jobs/{job}"),
    ("GET", "/v1/fine_tuning/jobs/{job}/events"),
    ("GET", "/v1/fine_tuning/jobs/{job}/checkpoints"),
    ("GET", "/v1/fine_tuning/jobs?after={job}"),
    ("POST", "/v1/fine_tuning/jobs/{job}/pause"),
    ("POST", "/v1/fine_tuning/jobs/{job}/resume"),
    ("POST", "/v1/fine_tuning/jobs/{job}/cancel"),
    ("GET", "/v1/models/" + MODEL),
    ("GET", "/v1/models/" + CHECKPOINT),
    ("GET", "/api/deployments/ours"),
    ("DELETE", "/api/deployments/ours"),
    ("DELETE", "/v1/models/" + MODEL),
    ("DELETE", "/v1/files/{file}"),
]


def masked(answer: Any, ids: dict[str, str]) -> str:
    """An answer's text with the ids that were asked for taken out."""
    text: str = answer.text
    for value in ids.values():
        text = text.replace(value, "ID")
    return text


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[f"{method} {path}" for method, path in ROUTES])
def test_a_foreign_object_looks_like_none(
    server: Server, stranger: str, ours: dict[str, str], method: str, path: str
) -> None:
    """The other project's key gets a 404, word for word the one for an id that never was; the owner does not."""
    never = {"file": "file-" + "x" * 24, "job": "ftjob-" + "x" * 24}
    with server.http(stranger) as http:
        foreign = http.request(method, path.format(**ours))
        absent = http.request(method, path.format(**never).replace("ours", "never").replace("AbCd1234", "AbCd9999"))
    assert foreign.status_code == 404
    assert masked(foreign, ours).replace("ours", "never").replace("AbCd1234", "AbCd9999") == masked(absent, never)
    if method == "GET":
        assert server.get(path.format(**ours)).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/files", "/v1/fine_tuning/jobs", "/api/deployments", "/v1/fine_tuning/jobs?metadata[a]=b"]
)
def test_foreign_objects_are_in_no_list(server: Server, stranger: str, ours: dict[str, str], path: str) -> None:
    """The other project's lists are empty."""
    assert server.get(path, key=stranger).json()["data"] == []


def test_foreign_models_are_in_no_list_but_base_models_are(server: Server, stranger: str, ours: dict[str, str]) -> None:
    """Base models belong to the machine, fine-tuned ones to their project."""
    assert [model["id"] for model in server.get("/v1/models", key=stranger).json()["data"]] == [TINY]
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == [TINY, MODEL]


def test_foreign_names_cannot_be_used(server: Server, stranger: str, ours: dict[str, str]) -> None:
    """Neither a file, a model, a checkpoint nor a deployment of another project works in a request."""
    jobs, chat = "/v1/fine_tuning/jobs", "/v1/chat/completions"
    answer = server.post(jobs, {"model": TINY, "training_file": ours["file"]}, key=stranger)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "file_not_found")
    own = server.upload(chat_lines(12), key=stranger)
    for model in (MODEL, CHECKPOINT, "ours"):
        answer = server.post(jobs, {"model": model, "training_file": own}, key=stranger)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_found"), model
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        answer = server.post(chat, body, key=stranger)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), model
        assert server.post("/api/deployments", {"name": "mine", "model": model}, key=stranger).status_code == 404


def test_names_are_free_in_another_project(server: Server, stranger: str, ours: dict[str, str]) -> None:
    """The same deployment name may be used in each project, and each keeps its own."""
    assert server.post("/api/deployments", {"name": "ours", "model": TINY}, key=stranger).status_code == 200
    assert server.get("/api/deployments/ours").json()["model"] == MODEL
    assert server.get("/api/deployments/ours", key=stranger).json()["model"] == TINY
    with server.http(stranger) as http:
        assert http.delete("/api/deployments/ours").status_code == 200
    assert server.get("/api/deployments/ours").status_code == 200


def test_the_same_bytes_in_two_projects_are_two_files(server: Server, stranger: str) -> None:
    """Deleting one project's file leaves the other's bytes, although they are stored once."""
    content = chat_lines(20, text="shared")
    first, second = server.upload(content), server.upload(content, key=stranger)
    assert server.client().files.delete(first).deleted
    assert server.get(f"/v1/files/{second}/content", key=stranger).content == content
    assert server.client(stranger).files.delete(second).deleted
    digests = [path for path in (server.ctx.home / "objects" / "sha256").rglob("*") if path.is_file()]
    assert content not in [path.read_bytes() for path in digests]
