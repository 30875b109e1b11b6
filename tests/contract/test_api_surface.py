"""The API's surface changes only on purpose: schema, routes, ignored fields, statuses.

After a change on purpose, run this file with UPDATE_SNAPSHOTS=1 in the environment, read the difference of
docs/openapi.json, and commit it with the change.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from tests.api_server import TINY, Server, make_app

from smedje import errors
from smedje.api.bodies import IGNORED_FIELDS, UNSUPPORTED_FIELDS
from smedje.api.errors import NEVER_RETRIED, STATUSES, status_of, to_response

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "docs" / "openapi.json"


def test_the_schema_is_the_committed_one(server: Server) -> None:
    """docs/openapi.json is what the server says at /openapi.json."""
    found = json.dumps(make_app(server.ctx).openapi(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SCHEMA.write_text(found, encoding="utf-8")
    assert found == SCHEMA.read_text(encoding="utf-8"), "see this file's first lines"
    assert server.get("/openapi.json").json() == json.loads(found)


def test_every_route_is_documented(server: Server) -> None:
    """docs/api.md names each method and path."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    routes = [
        f"{method} {found.path}"
        for found in iter_route_contexts(make_app(server.ctx).routes)
        for method in sorted(found.methods or ())
        if method != "HEAD"
    ]
    assert not [route for route in routes if f"`{route}`" not in text]


def test_every_route_that_a_page_names_exists(server: Server) -> None:
    """`METHOD /path` in the README or a page is a route, perhaps with a real name in place of a braced one."""
    routes = [
        re.compile(f"{method} " + re.sub(r"{[^}]+}", "[^/]+", found.path))
        for found in iter_route_contexts(make_app(server.ctx).routes)
        for method in found.methods or ()
    ]
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    named = {
        (page.name, route)
        for page in pages
        for route in re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE)\s/[^`?\s]*)", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 100
    assert not [one for one in named if not any(route.fullmatch(one[1].replace("\n", " ")) for route in routes)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user", "u-1"),
        ("safety_identifier", "s-1"),
        ("prompt_cache_key", "k"),
        ("prompt_cache_options", {"mode": "implicit"}),
        ("prompt_cache_retention", "24h"),
        ("metadata", {"a": "b"}),
    ],
)
def test_ignored_fields_change_nothing(server: Server, name: str, value: Any) -> None:
    """Each field of the list of ignored ones is accepted, and the answer is the one without it."""
    assert name in IGNORED_FIELDS["chat"]
    body = {"model": TINY, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
    plain, given = (server.post("/v1/chat/completions", asked).json() for asked in (body, {**body, name: value}))
    assert given["choices"] == plain["choices"]


def test_the_list_of_ignored_fields_is_this_one_and_documented() -> None:
    """Nothing is added to it without a test above and a word in docs/api.md."""
    assert {
        "chat": {
            "user",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "metadata",
        },
        "completion": {"user"},
        "job": {"trainingType"},
    } == IGNORED_FIELDS
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = [name for names in (*IGNORED_FIELDS.values(), *UNSUPPORTED_FIELDS.values()) for name in names]
    assert not [name for name in named if f"`{name}`" not in text]


def test_null_and_neutral_values_of_fields_not_offered_are_accepted(server: Server) -> None:
    """Clients that send every field with its empty value are served; all of it means the same as leaving it out."""
    body = {"model": TINY, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
    plain = server.post("/v1/chat/completions", body).json()["choices"]
    nulls = dict.fromkeys(UNSUPPORTED_FIELDS["chat"])
    for extra in (nulls, {name: values[0] for name, values in UNSUPPORTED_FIELDS["chat"].items() if values}):
        answer = server.post("/v1/chat/completions", {**body, **extra})
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"] == plain
    optional = dict.fromkeys(("n", "stop", "seed", "stream", "temperature", "top_p", "logprobs", "max_tokens"))
    answer = server.post("/v1/chat/completions", {**body, **optional, "max_completion_tokens": 2})
    assert answer.status_code == 200, answer.text


def test_every_error_has_a_status_and_its_retry_rule() -> None:
    """Each class of the tree has its status; state conflicts and full disks forbid the official client's retries."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SmedjeError)]
    statuses = {kind.__name__: status_of(kind("text"))[0] for kind in kinds}
    assert statuses == {
        "SmedjeError": 500,
        "InvalidRequest": 400,
        "UnsupportedField": 400,
        "InvalidData": 400,
        "AuthenticationFailed": 401,
        "PermissionDenied": 403,
        "NotFound": 404,
        "Conflict": 409,
        "TooLarge": 413,
        "LimitExceeded": 429,
        "OutOfStorage": 507,
        "Unavailable": 503,
        "InternalError": 500,
    }
    for kind in kinds:
        header = to_response(kind("text")).headers.get("x-should-retry")
        assert (header == "false") == issubclass(kind, NEVER_RETRIED)
    assert set(STATUSES) <= set(kinds)
