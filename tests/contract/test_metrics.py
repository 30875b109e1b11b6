"""Metrics for monitoring: what they count, who may read them, and that they hold no name that a user gave."""

import re

from tests.api_server import TINY, Server


def value(page: str, series: str) -> float:
    """The value of one series, 0 when it is not there."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_metrics_count_requests_tokens_waits_and_engines(server: Server) -> None:
    """Two answers of three tokens each move every meter by what was sent and answered."""
    before = server.get("/metrics").text
    server.post("/api/deployments", {"name": "metered-by-name", "model": TINY})
    body = {"model": "metered-by-name", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    usages = [server.post("/v1/chat/completions", body).json()["usage"] for _ in range(2)]
    after = server.get("/metrics").text

    def grown(series: str) -> float:
        return value(after, series) - value(before, series)

    route = 'method="POST",route="/v1/chat/completions",status="200"'
    assert grown(f"smedje_http_requests_total{{{route}}}") == 2
    for kind, count in (("prompt", "prompt_tokens"), ("completion", "completion_tokens")):
        assert grown(f'smedje_tokens_total{{base_model="{TINY}",kind="{kind}"}}') == sum(u[count] for u in usages)
    assert grown(f'smedje_first_token_seconds_count{{base_model="{TINY}"}}') == 2
    assert grown(f'smedje_token_seconds_count{{base_model="{TINY}"}}') >= 2
    assert value(after, f'smedje_engine{{base_model="{TINY}",what="token_capacity"}}') > 0
    assert "metered-by-name" not in after


def test_paths_that_are_no_route_share_one_series(server: Server) -> None:
    """What a stranger asks for cannot grow the page: unknown paths count under the empty route."""
    for number in range(5):
        assert server.get(f"/nowhere/{number}").status_code == 404
    page = server.get("/metrics").text
    assert "nowhere" not in page
    assert value(page, 'smedje_http_requests_total{method="GET",route="",status="404"}') >= 5


def test_metrics_need_a_key_for_the_whole_server(server: Server) -> None:
    """A project's owner does not read other projects' load."""
    made = server.post("/api/keys", {"name": "project owner", "role": "owner"}).json()["secret"]
    refused = server.get("/metrics", key=made)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
