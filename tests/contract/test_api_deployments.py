"""Deployments, deletion rules, the catalog and the estimate, over HTTP."""

from tests.api_server import TINY, Server, chat_lines

from smedje.domain.catalog import FineTunedModel
from smedje.domain.jobs import FineTuningJob, JobRequest, JobStatus
from smedje.store import catalog as model_rows
from smedje.store import jobs as job_rows

DEPLOYMENTS = "/api/deployments"
QUESTION = [{"role": "user", "content": "hi"}]


def tuned(server: Server, job: str) -> str:
    """The row of a fine-tuned model, with its job's, for rules that never load the adapter."""
    name = f"ft:{TINY}:default::{job}"
    request = JobRequest(model=TINY, base_model=TINY, training_file="file-x")
    done = FineTuningJob(
        id=f"ftjob-{job}",
        project_id=server.project.id,
        request=request,
        status=JobStatus.SUCCEEDED,
        created_at=4,
        fine_tuned_model=name,
    )
    with server.ctx.database.transaction() as tx:
        job_rows.insert_job(tx, done)
        model_rows.insert_model(
            tx,
            FineTunedModel(
                id=name,
                project_id=server.project.id,
                base_model=TINY,
                job_id=done.id,
                suffix="",
                checkpoint_key="runs/run-x/checkpoints/0000000003",
                step=3,
                created_at=5,
            ),
        )
    return name


def delete(server: Server, path: str) -> tuple[int, dict[str, object]]:
    """Status and body of a deletion."""
    with server.http() as http:
        answer = http.delete(path)
        return answer.status_code, answer.json()


def test_a_deployment_answers_under_its_name(server: Server) -> None:
    """Create, find it ready, chat with it, list it, delete it; then the name means nothing."""
    made = server.post(DEPLOYMENTS, {"name": "support", "model": TINY})
    assert made.status_code == 200, made.text
    assert (made.json()["status"], made.json()["base_model"]) == ("ready", TINY)
    assert server.get(f"{DEPLOYMENTS}/support").json() == made.json()
    answer = server.client().chat.completions.create(
        model="support", messages=[{"role": "user", "content": "hi"}], max_tokens=3
    )
    assert answer.model == "support"
    assert made.json() in server.get(DEPLOYMENTS).json()["data"]
    assert delete(server, f"{DEPLOYMENTS}/support")[1]["deleted"] is True
    body = {"model": "support", "messages": QUESTION}
    assert server.post("/v1/chat/completions", body).status_code == 404


def test_a_name_is_taken_once(server: Server) -> None:
    """A second deployment of the name is a 409 that must not be retried; a base model's name is kept for itself."""
    assert server.post(DEPLOYMENTS, {"name": "once", "model": TINY}).status_code == 200
    second = server.post(DEPLOYMENTS, {"name": "once", "model": TINY})
    assert second.status_code == 409
    assert second.headers["x-should-retry"] == "false"
    assert second.json()["error"]["code"] == "deployment_exists"
    other = server.post(DEPLOYMENTS, {"name": TINY, "model": tuned(server, "TakenOnc")})
    assert other.json()["error"]["code"] == "name_taken"


def test_wrong_deployments_are_refused(server: Server) -> None:
    """Names that cannot be one, unknown models and unknown fields are refused by name."""
    for name in ("", "a b", "-a", "x" * 65, "ft:a", "a/b", "ø"):
        answer = server.post(DEPLOYMENTS, {"name": name, "model": TINY})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "name"), name
    assert server.post(DEPLOYMENTS, {"name": "a", "model": "nobody"}).status_code == 404
    assert server.post(DEPLOYMENTS, {"name": "a", "model": TINY, "sku": "S"}).json()["error"]["param"] == "sku"


def test_a_deployed_model_is_not_deleted(server: Server) -> None:
    """Deleting a tuned model is a 409 that names the deployments in the way; without them it is gone."""
    model = tuned(server, "AbCd1234")
    for name in ("blue", "green"):
        assert server.post(DEPLOYMENTS, {"name": name, "model": model}).status_code == 200
    status, body = delete(server, f"/v1/models/{model}")
    assert status == 409
    error = body["error"]
    assert isinstance(error, dict)
    assert "blue, green" in error["message"]
    assert error["code"] == "model_deployed"
    for name in ("blue", "green"):
        assert delete(server, f"{DEPLOYMENTS}/{name}")[0] == 200
    assert delete(server, f"/v1/models/{model}") == (200, {"id": model, "object": "model", "deleted": True})
    assert server.get(f"/v1/models/{model}").status_code == 404


def test_deployments_page_by_name_and_filter_by_model(server: Server) -> None:
    """The list goes by name, in pages, and can be narrowed to one model."""
    model = tuned(server, "Paged123")
    for name in ("p3", "p1", "p2"):
        assert server.post(DEPLOYMENTS, {"name": name, "model": model}).status_code == 200
    first = server.get(f"{DEPLOYMENTS}?limit=2&model={model}").json()
    assert [one["name"] for one in first["data"]] == ["p1", "p2"]
    assert first["has_more"] is True
    rest = server.get(f"{DEPLOYMENTS}?limit=2&model={model}&after={first['last_id']}").json()
    assert ([one["name"] for one in rest["data"]], rest["has_more"]) == (["p3"], False)


def test_the_catalog_says_what_can_be_tuned_and_what_is_here(server: Server) -> None:
    """Search finds entries by every word; each has defaults, limits and whether it is installed."""
    found = server.get("/api/catalog?search=phi-3-mini+4k").json()["data"]
    assert "phi-3-mini-4k-instruct" in [entry["id"] for entry in found]
    assert all(entry["installed"] is False and entry["defaults"]["learning_rate"] > 0 for entry in found)
    assert server.get("/api/catalog?search=no+such+model").json() == {"object": "list", "data": []}


def test_an_estimate_counts_exactly_and_says_what_its_time_rests_on(server: Server) -> None:
    """Rows after the split, steps and tokens follow from the request; twice the epochs are twice the tokens."""
    file, jobs = server.upload(chat_lines(40)), server.get("/v1/fine_tuning/jobs").json()

    def ask(epochs: int, **options: object) -> dict[str, object]:
        hyperparameters = {"n_epochs": epochs, "batch_size": 4}
        body = {"model": TINY, "training_file": file, "hyperparameters": hyperparameters, "smedje": options, "seed": 1}
        answer = server.post("/api/fine_tuning/estimate", body)
        assert answer.status_code == 200, answer.text
        found: dict[str, object] = answer.json()
        return found

    two, four = ask(2), ask(4)
    assert (two["rows"], two["validation_rows"], two["steps"]) == (32, 8, 16)
    assert isinstance(two["trained_tokens"], int)
    assert four["trained_tokens"] == 2 * two["trained_tokens"]
    assert (four["n_epochs"], four["steps"]) == (4, 32)
    assert "no job on tiny-random has finished" in str(two["basis"])
    assert two["fits"] is True
    assert ask(2, validation_fraction=0)["rows"] == 40
    assert ask(2, max_steps=3)["steps"] == 3
    assert server.get("/v1/fine_tuning/jobs").json() == jobs


def test_an_estimate_refuses_examples_that_are_too_long(server: Server) -> None:
    """What the job would fail on is told before it is made, with the line."""
    file = server.upload(chat_lines(11) + chat_lines(1, text="x" * 500))
    body = {"model": TINY, "training_file": file, "smedje": {"max_tokens_per_example": 64}}
    answer = server.post("/api/fine_tuning/estimate", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "example_too_long")
    assert "Line 12" in answer.json()["error"]["message"]
