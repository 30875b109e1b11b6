"""Requests made from the API's own schema, valid and broken ones, against a live server: none is a server error.

The suite sends a few hundred; `make fuzz-api` sends 5,000 (SMEDJE_API_CASES). Seeded, so that a finding comes again.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.errors import InvalidSchema
from schemathesis.schemas import APIOperation
from tests.api_server import TINY, Server, chat_lines, make_app

CASES = int(os.environ.get("SMEDJE_API_CASES", "300"))


def each_case(operation: APIOperation, mode: GenerationMode, count: int, send: Callable[..., None]) -> None:
    """Call `send` with up to `count` cases of one operation; with none where its schema leaves nothing to break."""
    config = settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config(given(case=operation.as_strategy(generation_mode=mode))(send))()
        except (InvalidSchema, Unsatisfiable):
            return


def objects(server: Server) -> dict[str, str]:
    """Path parameter -> the name of something that is there."""
    file = server.upload(chat_lines(10))
    job = server.post("/v1/fine_tuning/jobs", {"model": TINY, "training_file": file}).json()["id"]
    server.post("/api/deployments", {"name": "asked", "model": TINY})
    project = server.project
    return {"file_id": file, "job_id": job, "name": "asked", "hub": project.hub_id, "project": project.id, "row": "1"}


def test_no_request_that_the_schema_allows_or_forbids_is_a_server_error(server: Server) -> None:
    """Every operation of the schema, its share of the cases each: valid bodies, wrong types, missing and extra fields,
    strange strings in every place; every other one names objects that are there. All statuses are below 500."""
    known = objects(server)
    schema = schemathesis.openapi.from_dict(make_app(server.ctx).openapi())
    operations = [found.ok() for found in schema.get_all_operations()]
    headers = {"Authorization": f"Bearer {server.key}"}
    statuses: Counter[int] = Counter()
    failures: list[str] = []

    def send(case: schemathesis.Case) -> None:
        if statuses.total() % 2 and case.method.upper() != "DELETE" and "archive" not in case.operation.path:
            case.path_parameters.update({name: known[name] for name in case.path_parameters if name in known})
        answer = case.call(base_url=server.url, headers=headers, timeout=60)
        statuses[answer.status_code] += 1
        if answer.status_code >= 500:
            failures.append(f"{answer.status_code} {case.as_curl_command()[:2000]}\n{answer.text[:300]}")

    for number, operation in enumerate(operations):
        rest = 1.1 * CASES - statuses.total()  # some operations leave fewer cases to make than their share
        share = max(1, int(rest / (len(operations) - number)) + 1)
        each_case(operation, GenerationMode.NEGATIVE, (share + 1) // 2, send)
        each_case(operation, GenerationMode.POSITIVE, max(1, share // 2), send)
    print(f"{statuses.total()} cases over {len(operations)} operations: {dict(sorted(statuses.items()))}")
    assert not failures, "\n\n".join(failures[:5])
    assert statuses.total() >= CASES
