"""Locations: what this machine says of itself, hubs that name one, and jobs that their hub's location cannot train."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.api_server import TINY, Server, chat_lines, live_server, make_context

from smedje.domain.jobs import JobStatus
from smedje.domain.projects import Hub
from smedje.services.abilities import abilities, too_large
from smedje.store import leases
from smedje.store import projects as project_rows
from smedje.store import upkeep as rows


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that speaks for the location `here`."""
    ctx = replace(make_context(tmp_path_factory.mktemp("home")), location="here")
    with live_server(ctx) as found:
        yield found


def elsewhere(server: Server, name: str, **changes: object) -> None:
    """Another server that shares the database speaks for a location."""
    about = abilities(server.ctx.home) | changes
    with server.ctx.database.transaction() as tx:
        rows.put_location(tx, name, about, now=server.ctx.seconds())


def hub_at(server: Server, location: str) -> None:
    """The project's hub is there from now on."""
    with server.ctx.database.transaction() as tx:
        hub = project_rows.find_hub(tx, server.project.hub_id)
        assert isinstance(hub, Hub)
        project_rows.save_hub(tx, replace(hub, location=location))


def test_a_location_says_what_it_can(server: Server) -> None:
    """The list has this machine with its memory, methods and models; a known model that is not installed says so."""
    [found] = server.get("/api/locations").json()["data"]
    assert (found["name"], found["alive"], found["executor"]) == ("here", True, "local")
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**28
    assert {"supervised", "dpo"} <= set(found["methods"])
    models = {model["name"]: model for model in found["models"]}
    assert models[TINY]["installed"]
    assert not models["phi-3-medium-4k-instruct"]["installed"]


def test_hubs_name_a_location_that_exists(server: Server) -> None:
    """A hub without a location is at the server's own; an unknown one is refused with the known ones."""
    made = server.post("/api/hubs", {"name": "plain"}).json()
    assert made["location"] == "here"
    refused = server.post("/api/hubs", {"name": "far", "location": "moon"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_location")
    assert "here" in refused.json()["error"]["message"]
    elsewhere(server, "moon")
    assert server.post("/api/hubs", {"name": "far", "location": "moon"}).json()["location"] == "moon"


def test_a_job_is_refused_where_it_cannot_be_trained(server: Server) -> None:
    """Method, missing model and memory are each refused with what the location can do; so is one nobody speaks for."""
    file = server.upload(chat_lines(12))
    job = {"model": TINY, "training_file": file}

    def refusal(path: str = "/v1/fine_tuning/jobs") -> tuple[int, str, str]:
        answer = server.post(path, job)
        error = answer.json().get("error") or {}
        return answer.status_code, error.get("code", ""), error.get("message", "")

    assert refusal()[0] == 200
    hub_at(server, "dpo-only")
    elsewhere(server, "dpo-only", models=[model(methods=["dpo"])])
    status, code, message = refusal()
    assert (status, code) == (400, "location_cannot_train")
    assert "dpo-only" in message
    assert "its methods are dpo" in message
    assert refusal("/api/fine_tuning/estimate")[1] == "location_cannot_train"
    elsewhere(server, "dpo-only", models=[model(installed=False), model(name="other")])
    assert "not installed there. What can: other." in refusal()[2]
    elsewhere(server, "dpo-only", models=[model(reason="its weights alone need 9.0 GB")])
    assert "its weights alone need 9.0 GB" in refusal()[2]
    hub_at(server, "nowhere")
    assert refusal()[1] == "unknown_location"
    hub_at(server, "here")
    assert refusal()[0] == 200


def model(**changes: object) -> dict[str, object]:
    """What a location says of a base model."""
    plain = {"name": TINY, "installed": True, "methods": ["supervised"], "memory_bytes": 1, "reason": None}
    return plain | changes


def test_a_server_takes_only_the_jobs_of_its_location(server: Server) -> None:
    """Of two servers on one database each claims the jobs of the hubs at its own location."""
    file = server.upload(chat_lines(12))
    made = server.post("/v1/fine_tuning/jobs", {"model": TINY, "training_file": file}).json()["id"]

    def claimed(location: str) -> set[str]:
        with server.ctx.database.transaction() as tx:
            held = leases.claim_jobs(
                tx,
                owner=location,
                now=server.ctx.now(),
                lease_seconds=8,
                statuses=(JobStatus.VALIDATING_FILES,),
                location=location,
            )
        return {lease.job.id for lease in held}

    assert claimed("moon") == set()
    assert made in claimed("here")


def test_a_model_that_is_larger_than_the_memory_is_named_so() -> None:
    """A base model whose weights alone exceed the machine's memory has a reason with both numbers."""
    reason = too_large(3_821_079_552, memory=10**9)
    assert reason == "its weights alone need 7.6 GB, and there are 1.0 GB of memory"
    assert too_large(134_515_008, memory=10**9) is None
