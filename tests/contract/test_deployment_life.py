"""A deployment's life after its creation: another model, a canary, going back, keys of its own, a try, samples."""

import re
import subprocess
import sys
import threading

import pytest
from openai import NotFoundError, OpenAI, PermissionDeniedError
from tests.api_server import TINY, Server
from tests.contract.test_api_deployments import tuned

from smedje.domain.deployments import Canary, Deployment, DeploymentStatus, Served, answering
from smedje.services.catalog import resolve

DEPLOYMENTS = "/api/deployments"


def patch(server: Server, name: str, body: dict[str, object]) -> tuple[int, dict[str, object]]:
    """Status and body of a change."""
    with server.http() as http:
        answer = http.patch(f"{DEPLOYMENTS}/{name}", json=body)
    return answer.status_code, answer.json()


def deployed(server: Server, name: str) -> None:
    """A deployment of the tiny base model."""
    assert server.post(DEPLOYMENTS, {"name": name, "model": TINY}).status_code == 200


def test_a_deployment_moves_to_another_model_and_back(server: Server) -> None:
    """PATCH changes what answers and counts a revision; rollback goes to the model before, or to a named revision."""
    model = tuned(server, "LifeMove")
    deployed(server, "moving")
    status, changed = patch(server, "moving", {"model": model})
    assert (status, changed["model"], changed["revision"]) == (200, model, 2)
    back = server.post(f"{DEPLOYMENTS}/moving/rollback", {}).json()
    assert (back["model"], back["revision"]) == (TINY, 3)
    again = server.post(f"{DEPLOYMENTS}/moving/rollback", {"revision": 2}).json()
    assert (again["model"], again["revision"]) == (model, 4)
    story = server.get(f"{DEPLOYMENTS}/moving/revisions").json()["data"]
    assert [(one["revision"], one["model"]) for one in story] == [(4, model), (3, TINY), (2, model), (1, TINY)]
    missing = server.post(f"{DEPLOYMENTS}/moving/rollback", {"revision": 9})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "revision_not_found")
    assert "4 (ft:" in missing.json()["error"]["message"]


def test_a_canary_takes_its_share_and_ends(server: Server) -> None:
    """A canary is named with its share, is drawn for about that many requests, can be promoted, and ends at 0."""
    model = tuned(server, "LifeCana")
    deployed(server, "mixed")
    status, changed = patch(server, "mixed", {"canary": {"model": model, "percent": 25}})
    assert (status, changed["canary"]) == (200, {"model": model, "base_model": TINY, "percent": 25})
    drawn = [resolve(server.ctx, server.project.id, "mixed").model for _ in range(400)]
    assert 60 <= drawn.count(model) <= 140
    assert set(drawn) == {model, TINY}
    status, changed = patch(server, "mixed", {"canary": {"percent": 50}})
    assert changed["canary"] == {"model": model, "base_model": TINY, "percent": 50}
    status, changed = patch(server, "mixed", {"model": model})
    assert (changed["model"], changed["canary"], changed["revision"]) == (model, None, 2)
    status, changed = patch(server, "mixed", {"canary": {"model": TINY, "percent": 10}})
    assert changed["canary"] == {"model": TINY, "base_model": TINY, "percent": 10}
    assert patch(server, "mixed", {"canary": {"percent": 0}})[1]["canary"] is None


def test_wrong_changes_are_refused_by_name(server: Server) -> None:
    """Shares out of range, a canary that is the model, an empty change, unknown models: each says which field."""
    deployed(server, "strict")
    for body, status, param in (
        ({}, 400, "model"),
        ({"model": "nobody"}, 404, "model"),
        ({"canary": {"model": TINY, "percent": 10}}, 400, "canary.model"),
        ({"canary": {"model": tuned(server, "LifeWron"), "percent": 100}}, 400, "canary.percent"),
        ({"canary": {"percent": 10}}, 400, "canary.model"),
        ({"weight": 3}, 400, "weight"),
    ):
        found = patch(server, "strict", body)
        assert (found[0], found[1]["error"]["param"]) == (status, param), found  # type: ignore[index]


def test_a_canarys_model_is_not_deleted(server: Server) -> None:
    """A model that answers only a share is in use: deleting it is refused with the deployment's name."""
    model = tuned(server, "LifeKept")
    deployed(server, "careful")
    patch(server, "careful", {"canary": {"model": model, "percent": 1}})
    with server.http() as http:
        refused = http.delete(f"/v1/models/{model}")
    assert refused.status_code == 409
    assert "careful" in refused.json()["error"]["message"]


def test_callers_stay_with_their_model() -> None:
    """The same caller meets the same model while the deployment stays as it is; shares come out right over many."""
    served = [Served(model=name, base_model="b", adapter_key=None) for name in ("main", "canary")]
    deployment = Deployment(
        id="dep_1",
        project_id="proj_1",
        name="d",
        model="main",
        base_model="b",
        adapter_key=None,
        status=DeploymentStatus.READY,
        created_at=1,
        canary=Canary(served=served[1], percent=30),
    )
    drawn = [answering(deployment, f"user {i}") for i in range(2000)]
    assert drawn == [answering(deployment, f"user {i}") for i in range(2000)]
    assert 520 <= drawn.count(served[1]) <= 680


def test_a_deployments_key_asks_it_and_nothing_else(server: Server) -> None:
    """A slot's key chats with its deployment, sees no other model and no other route; a new one ends it at once."""
    deployed(server, "keyed")
    assert [one["id"] for one in server.get(f"{DEPLOYMENTS}/keyed/keys").json()["data"]] == [None, None]
    first = server.post(f"{DEPLOYMENTS}/keyed/keys/primary", {}).json()
    second = server.post(f"{DEPLOYMENTS}/keyed/keys/secondary", {}).json()
    client = OpenAI(base_url=f"{server.url}/v1", api_key=first["secret"], max_retries=0)
    question = [{"role": "user", "content": "hi"}]
    client.chat.completions.create(model="keyed", messages=question, max_tokens=1)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="keyed alone"):
        client.chat.completions.create(model=TINY, messages=question, max_tokens=1)  # type: ignore[arg-type]
    with pytest.raises(PermissionDeniedError):
        client.files.list()
    server.post(f"{DEPLOYMENTS}/keyed/keys/primary", {})
    body = {"model": "keyed", "messages": question, "max_tokens": 1}
    assert server.post("/v1/chat/completions", body, key=first["secret"]).status_code == 401
    assert server.post("/v1/chat/completions", body, key=second["secret"]).status_code == 200
    with server.http() as http:
        http.delete(f"{DEPLOYMENTS}/keyed")
    assert server.post("/v1/chat/completions", body, key=second["secret"]).status_code == 401


def test_clients_move_between_slots_without_a_dropped_request(server: Server) -> None:
    """A client on the second key never fails while the first is made anew over and over."""
    deployed(server, "turning")
    stay = server.post(f"{DEPLOYMENTS}/turning/keys/secondary", {}).json()["secret"]
    body = {"model": "turning", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    statuses: list[int] = []

    def client() -> None:
        statuses.extend(server.post("/v1/chat/completions", body, key=stay).status_code for _ in range(10))

    asking = threading.Thread(target=client)
    asking.start()
    for _ in range(10):
        assert server.post(f"{DEPLOYMENTS}/turning/keys/primary", {}).status_code == 200
    asking.join()
    assert statuses == [200] * 10


def test_a_deployment_can_be_tried(server: Server) -> None:
    """The test call answers with text, tokens and seconds; an unknown name is a 404."""
    deployed(server, "tried")
    found = server.post(f"{DEPLOYMENTS}/tried/test", {"message": "hello"}).json()
    assert found["completion_tokens"] >= 1
    assert found["seconds"] >= 0
    assert server.post(f"{DEPLOYMENTS}/untried/test", {}).status_code == 404


def test_samples_name_the_deployment_and_the_python_one_runs(server: Server) -> None:
    """Code in four languages; the Python program runs as it stands against the live server."""
    deployed(server, "sampled")
    found = server.get(f"{DEPLOYMENTS}/sampled/samples").json()
    for language in ("python", "javascript", "csharp", "curl"):
        assert '"sampled"' in found[language]
        assert re.search(rf"{re.escape(server.url)}/v1", found[language])
    ran = subprocess.run(
        [sys.executable, "-c", found["python"]],
        env={"SMEDJE_KEY": server.key},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
