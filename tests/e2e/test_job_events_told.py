"""Whoever asked hears how a job ended, though the server is killed in between; usage and audit tell the same story."""

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx2
import pytest
from tests.server_process import KEY, ServerProcess, finished, server_home, steps, wait_for


@dataclass
class Receiver:
    """Somebody who is told, and takes nothing until `open`."""

    url: str = ""
    open: bool = False
    tried: list[str] = field(default_factory=list)
    taken: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


class Hook(http.server.BaseHTTPRequestHandler):
    """Keeps what is posted once it is open."""

    def do_POST(self) -> None:
        """Take it, or ask for another try."""
        receiver: Receiver = self.server.receiver  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["content-length"]))
        receiver.tried.append(self.headers["webhook-id"])
        if receiver.open:
            receiver.taken.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(204 if receiver.open else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on this machine."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    found = Receiver(url=f"http://127.0.0.1:{served.server_port}/hook")
    served.receiver = found  # type: ignore[attr-defined]
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield found
    served.shutdown()
    served.server_close()


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that may reach this machine."""
    settings = {"SMEDJE_LEASE_SECONDS": "2", "SMEDJE_OUTBOUND_ALLOW": "127.0.0.1/32"}
    server = ServerProcess(server_home(tmp_path_factory.mktemp("told")), settings)
    server.start()
    yield server
    server.stop()


def ask(server: ServerProcess, path: str) -> list[dict[str, object]]:
    """The rows of a list."""
    answer = httpx2.get(f"{server.url}{path}", headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


@pytest.mark.slow
def test_a_killed_server_still_tells_how_its_job_ended(server: ServerProcess, receiver: Receiver) -> None:
    """The event of a cancelled job is refused, the server killed; the next one delivers it, under the same id, signed.
    What the job had trained is usage, and the audit log names the server where the server acted."""
    with server.client() as client:
        hook = client.webhooks.create(
            name="ci", url=receiver.url, event_types=["fine_tuning.job.cancelled", "fine_tuning.job.succeeded"]
        )
        job = server.submit(client)
        wait_for(lambda: max(steps(client, job.id), default=0) >= 2, what="step 2")
        client.fine_tuning.jobs.cancel(job.id)
        log = f"/api/webhooks/{hook.id}/deliveries"
        wait_for(lambda: any(one["attempts"] for one in ask(server, log)), what="the first attempt")
    server.kill()
    assert not receiver.taken
    receiver.open = True
    server.start()
    with server.client() as client:
        headers, body = wait_for(lambda: receiver.taken, what="the event")[0]
        event = client.webhooks.unwrap(body, headers, secret=hook.signing_secret)
        assert (event.type, event.data.id) == ("fine_tuning.job.cancelled", job.id)
        assert headers["webhook-id"] == receiver.tried[0]
        assert set(receiver.tried) == {headers["webhook-id"]}
        short = {"smedje": {"lora_rank": 4, "max_steps": 3}}
        done = finished(client, server.submit(client, extra_body=short).id)
        assert done.status == "succeeded", done.error
        wait_for(lambda: len(receiver.taken) == 2, what="the second event")
    assert json.loads(receiver.taken[1][1])["data"] == {"id": done.id}
    rows = ask(server, "/api/usage?group_by=kind,key_id")
    [training] = [row for row in rows if row["kind"] == "training"]
    assert training["requests"] == 2
    assert training["key_id"] is not None
    assert int(str(training["trained_tokens"])) > int(str(done.trained_tokens)) > 0
    entries = {(str(one["action"]), str(one["object_id"])): one["key_id"] for one in ask(server, "/api/audit")}
    for action in ("job.queued", "job.started", "job.succeeded"):
        assert entries[action, done.id] is None
    assert entries["job.cancelled", job.id] is not None
