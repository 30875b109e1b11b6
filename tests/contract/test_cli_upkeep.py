"""Webhooks, retention, erasure, warnings and locations by the command line."""

import http.server
import ipaddress
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.api_server import TINY, Server, chat_lines, live_server, make_context

from smedje.cli.main import run
from smedje.services.outbound import Outbound

Shell = Callable[..., str]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that may reach this machine."""
    here = Outbound(networks=(ipaddress.ip_network("127.0.0.1/32"),))
    ctx = replace(make_context(tmp_path_factory.mktemp("home")), outbound=here)
    with live_server(ctx) as found:
        yield found


@pytest.fixture
def smedje(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Runs a command against the server and returns what it printed; with `code`, what a failure printed."""
    monkeypatch.setenv("SMEDJE_BASE_URL", server.url)
    monkeypatch.setenv("SMEDJE_HOME", str(server.ctx.home))
    monkeypatch.setenv("SMEDJE_API_KEY", server.key)

    def shell(*words: str, code: int = 0) -> str:
        found = run(words)
        out, err = capsys.readouterr()
        assert found == code, err
        return err if code else out

    return shell


@pytest.fixture
def listening() -> Iterator[tuple[str, list[str]]]:
    """The address of somebody who takes everything, and the signatures that came."""
    signatures: list[str] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            signatures.append(self.headers["webhook-signature"])
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/", signatures
    found.shutdown()
    found.server_close()


def the(shell: Shell, *words: str) -> Any:
    """What a command prints with --json."""
    return json.loads(shell(*words, "--json"))


def test_a_webhook_from_making_to_deletion(smedje: Shell, listening: tuple[str, list[str]]) -> None:
    """Made with its secret, tested, its log read, rotated (with --keep-old the old secret signs too), deleted; an
    address inside is refused in words."""
    url, signatures = listening
    failed = "fine_tuning.job.failed"
    made = the(smedje, "webhooks", "create", url, "--name", "ci", "--event", failed)
    assert (made["name"], made["event_types"]) == ("ci", [failed])
    assert made["signing_secret"].startswith("whsec_")
    assert "signing_secret " in smedje("webhooks", "rotate", made["id"], "--keep-old")
    assert the(smedje, "webhooks", "test", made["id"])["status_code"] == 200
    the(smedje, "webhooks", "test", made["id"], "--event", failed)
    told = the(smedje, "webhooks", "deliveries", made["id"])["data"]
    assert {one["type"] for one in told} == {"fine_tuning.job.succeeded", failed}
    smedje("webhooks", "rotate", made["id"])
    the(smedje, "webhooks", "test", made["id"])
    assert [len(one.split()) for one in signatures] == [2, 2, 1]
    assert "delivered" in smedje("webhooks", "deliveries", made["id"])
    assert made["id"] in smedje("webhooks", "list")
    assert "does not reach 10.0.0.1" in smedje("webhooks", "create", "http://10.0.0.1/", code=1)
    assert the(smedje, "webhooks", "delete", made["id"])["deleted"]
    assert "No webhooks" in smedje("webhooks", "list")


def test_rules_are_set_tried_and_followed(server: Server, smedje: Shell) -> None:
    """Days are shown and changed one by one; a preview with days of its own changes nothing."""
    server.upload(chat_lines(12))
    assert "files        0" in smedje("retention", "show")
    found = the(smedje, "retention", "set", "--files", "30", "--checkpoints", "7", "--events", "9")
    assert found == {"object": "retention", "files": 30, "checkpoints": 7, "events": 9}
    found = the(smedje, "retention", "set", "--checkpoints", "0")
    assert found == {"object": "retention", "files": 30, "checkpoints": 0, "events": 9}
    assert "Nothing." in smedje("retention", "preview", "--files", "7")
    assert the(smedje, "retention", "apply")["data"] == []


def test_a_row_is_erased_with_a_certificate(server: Server, smedje: Shell) -> None:
    """The preview lists what goes, a run needs --yes where nobody can be asked, the certificate is found again."""
    file = server.upload(chat_lines(12))
    assert file in smedje("erase", "preview", file, "--row", "2")
    assert "--yes" in smedje("erase", "run", file, code=2)
    made = the(smedje, "erase", "run", file, "--row", "2", "--yes")
    assert made["certificate"]["counts"]["files"] == 1
    assert made["sha256"] in smedje("erase", "list")
    assert made["certificate_text"] in smedje("erase", "certificate", made["id"])
    assert "No such File" in smedje("erase", "preview", file, code=3)


def test_warnings_and_removal_by_command_line(server: Server, smedje: Shell) -> None:
    """A limit's warning is a line of its own; what deleting a model frees is shown before."""
    smedje("quotas", "set", "deployments", "2", "--warn-at", "50")
    server.post("/api/deployments", {"name": "d", "model": TINY})
    limits = the(smedje, "quotas", "set", "requests_per_minute", "6", "--deployment", "d")["data"]
    assert ("requests_per_minute", "d") in [(one["name"], one["deployment"]) for one in limits]
    assert "warning: 50 % of the project's deployments" in smedje("quotas", "list")
    assert "no model" in smedje("models", "remove", f"ft:{TINY}:p:s:AbCd1234", "--preview", code=3)
    assert "location" in smedje("doctor")
