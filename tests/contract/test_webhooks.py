"""Webhooks with the official client: registering, signing, sending until received, rotation, giving up."""

import http.server
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import openai
import pytest
from tests.api_server import TINY, Clock, Server, chat_lines, live_server, make_context

from smedje.domain.jobs import JobStatus, advance
from smedje.domain.webhooks import EventType
from smedje.services.context import Context
from smedje.services.deliveries import DISABLE_AFTER_SECONDS, HOLD_SECONDS, WAITS, deliver_due
from smedje.services.job_ends import moved
from smedje.services.outbound import Outbound
from smedje.store import jobs as job_rows
from smedje.store import webhooks as rows

SUCCEEDED, FAILED, CANCELLED = (one.value for one in EventType)


@dataclass
class Receiver:
    """Somebody who is told: what came, and the statuses to answer with (the last one for ever)."""

    port: int
    answers: list[int] = field(default_factory=lambda: [200])
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/hook"


class Hook(http.server.BaseHTTPRequestHandler):
    """Keeps what is posted."""

    def do_POST(self) -> None:
        """Answer with the next status."""
        receiver: Receiver = self.server.receiver  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["content-length"]))
        receiver.came.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0])
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on this machine."""
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    found.receiver = Receiver(found.server_port)  # type: ignore[attr-defined]
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found.receiver  # type: ignore[attr-defined]
    found.shutdown()
    found.server_close()


@pytest.fixture(scope="module")
def clock() -> Clock:
    """A clock that begins at the real time, because clients compare."""
    return Clock()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[Server]:
    """A server that may reach this machine, on the test's clock."""
    ctx = make_context(tmp_path_factory.mktemp("home"))
    here = Outbound(networks=(ipaddress.ip_network("127.0.0.1/32"),))
    ctx = replace(ctx, outbound=here, now=clock)
    with live_server(ctx) as found:
        yield found


@pytest.fixture
def client(server: Server, clock: Clock) -> Iterator[openai.OpenAI]:
    """The official client; no webhook is left behind, and the time is the real one."""
    clock.at = time.time()
    found = server.client()
    yield found
    for one in found.webhooks.list():
        found.webhooks.delete(one.id)


def send(ctx: Context) -> int:
    """One pass of the sender."""
    with ThreadPoolExecutor(4) as pool:
        return deliver_due(ctx, pool)


def end_a_job(server: Server, status: JobStatus) -> str:
    """A job that the server itself ends; its id."""
    file = server.upload(chat_lines(12))
    job_id = server.client().fine_tuning.jobs.create(model=TINY, training_file=file).id
    with server.ctx.database.transaction() as tx:
        job = job_rows.get_any_job(tx, job_id)
        ended = advance(job, status, now=server.ctx.seconds())
        job_rows.save_job(tx, ended, was=job.status)
        moved(server.ctx, tx, ended)
    return job_id


def test_the_official_client_registers_and_verifies(server: Server, client: openai.OpenAI, receiver: Receiver) -> None:
    """A registered address gets a signed event that `client.webhooks.unwrap` accepts, and not with another secret."""
    hook = client.webhooks.create(name="ci", url=receiver.url, event_types=["fine_tuning.job.failed"])
    assert hook.signing_secret.startswith("whsec_")
    assert hook.signing_secret[-5:-1] == (hook.signing_secret_hint or "")[-4:]
    job_id = end_a_job(server, JobStatus.FAILED)
    assert send(server.ctx) == 1
    [(headers, body)] = receiver.came
    event = client.webhooks.unwrap(body, headers, secret=hook.signing_secret)
    assert (event.type, event.data.id) == (FAILED, job_id)
    assert json.loads(body) == {
        "id": headers["webhook-id"],
        "object": "event",
        "created_at": event.created_at,
        "type": FAILED,
        "data": {"id": job_id},
    }
    other = client.webhooks.create(name="b", url=receiver.url, event_types=["fine_tuning.job.failed"])
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body, headers, secret=other.signing_secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.replace(b"failed", b"passed"), headers, secret=hook.signing_secret)


def test_only_what_was_asked_for_is_told(server: Server, client: openai.OpenAI, receiver: Receiver) -> None:
    """Events that a webhook does not name are not queued; cancelling by a caller is told too."""
    client.webhooks.create(name="a", url=receiver.url, event_types=["fine_tuning.job.cancelled"])
    end_a_job(server, JobStatus.FAILED)
    assert send(server.ctx) == 0
    file = server.upload(chat_lines(12))
    job = client.fine_tuning.jobs.create(model=TINY, training_file=file)
    client.fine_tuning.jobs.cancel(job.id)
    assert send(server.ctx) == 1
    assert json.loads(receiver.came[0][1])["data"] == {"id": job.id}


def test_a_secret_is_shown_once_and_kept_nowhere(server: Server, client: openai.OpenAI, receiver: Receiver) -> None:
    """Neither later answers nor the database nor the audit log hold the secret."""
    hook = client.webhooks.create(name="a", url=receiver.url, event_types=[SUCCEEDED])  # type: ignore[list-item]
    told = str(client.webhooks.retrieve(hook.id)) + str(client.webhooks.list().data) + server.get("/api/audit").text
    assert hook.signing_secret not in told
    assert hook.signing_secret.removeprefix("whsec_").encode() not in (server.ctx.home / "smedje.db").read_bytes()
    assert (server.ctx.home / "signing_key").stat().st_mode & 0o777 == 0o600


def test_a_rotated_secret_signs_beside_the_old_one_for_a_day(
    server: Server, client: openai.OpenAI, receiver: Receiver, clock: Clock
) -> None:
    """With the old secret kept both verify for 24 hours; then only the new one; without, only the new one at once."""
    hook = client.webhooks.create(name="a", url=receiver.url, event_types=["fine_tuning.job.failed"])
    first = hook.signing_secret
    second = client.webhooks.rotate_secret(hook.id, keep_old_secret_active_for_24_hours=True).signing_secret
    assert first != second
    end_a_job(server, JobStatus.FAILED)
    send(server.ctx)
    headers, body = receiver.came[-1]
    client.webhooks.unwrap(body, headers, secret=first)
    client.webhooks.unwrap(body, headers, secret=second)
    third = client.webhooks.rotate_secret(hook.id).signing_secret
    end_a_job(server, JobStatus.FAILED)
    send(server.ctx)
    headers, body = receiver.came[-1]
    client.webhooks.unwrap(body, headers, secret=third)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body, headers, secret=second)


def test_an_event_is_sent_again_until_it_is_taken(
    server: Server, client: openai.OpenAI, receiver: Receiver, clock: Clock
) -> None:
    """A refused event is tried again after longer and longer waits, under the same id, and ends when it is taken."""
    hook = client.webhooks.create(name="a", url=receiver.url, event_types=["fine_tuning.job.failed"])
    receiver.answers[:] = [500, 302, 200]
    end_a_job(server, JobStatus.FAILED)
    assert [send(server.ctx), send(server.ctx)] == [1, 0]
    clock.at += WAITS[0] + 1
    assert send(server.ctx) == 1
    clock.at += WAITS[0] + 1
    assert send(server.ctx) == 0
    clock.at += WAITS[1]
    assert send(server.ctx) == 1
    assert len({headers["webhook-id"] for headers, _ in receiver.came}) == 1
    [told] = server.get(f"/api/webhooks/{hook.id}/deliveries").json()["data"]
    assert (told["state"], told["attempts"], told["status"], told["problem"]) == ("delivered", 3, 200, None)


def test_a_sender_that_dies_in_the_middle_loses_nothing(
    server: Server, client: openai.OpenAI, receiver: Receiver, clock: Clock
) -> None:
    """An event that a killed sender had taken is taken again half a minute later."""
    client.webhooks.create(name="a", url=receiver.url, event_types=["fine_tuning.job.failed"])
    end_a_job(server, JobStatus.FAILED)
    with server.ctx.database.transaction() as tx:
        [_] = rows.take_due(tx, now=server.ctx.seconds(), hold=HOLD_SECONDS, limit=8)
    assert send(server.ctx) == 0
    clock.at += HOLD_SECONDS
    assert send(server.ctx) == 1
    assert len(receiver.came) == 1


def test_a_receiver_that_fails_for_days_is_left_alone(
    server: Server, client: openai.OpenAI, receiver: Receiver, clock: Clock
) -> None:
    """After three days of failures a webhook is disabled, audited, and gets nothing until it is changed."""
    hook = client.webhooks.create(name="a", url=receiver.url, event_types=["fine_tuning.job.failed"])
    receiver.answers[:] = [503]
    end_a_job(server, JobStatus.FAILED)
    send(server.ctx)
    clock.at += DISABLE_AFTER_SECONDS
    send(server.ctx)
    shown = server.get(f"/v1/webhook_endpoints/{hook.id}").json()
    assert shown["disabled_at"] is not None
    assert "webhook.disabled" in server.get("/api/audit?limit=5").text
    end_a_job(server, JobStatus.FAILED)
    assert send(server.ctx) == 0
    receiver.answers[:] = [200]
    client.webhooks.update(hook.id, name="again")
    end_a_job(server, JobStatus.FAILED)
    assert send(server.ctx) == 1


def test_a_receiver_that_says_gone_is_left_alone_at_once(
    server: Server, client: openai.OpenAI, receiver: Receiver
) -> None:
    """The status 410 disables a webhook."""
    hook = client.webhooks.create(name="a", url=receiver.url, event_types=["fine_tuning.job.failed"])
    receiver.answers[:] = [410]
    end_a_job(server, JobStatus.FAILED)
    send(server.ctx)
    assert server.get(f"/v1/webhook_endpoints/{hook.id}").json()["disabled_at"] is not None


def test_a_test_delivery_tells_the_status(server: Server, client: openai.OpenAI, receiver: Receiver) -> None:
    """A test is sent at once, signed, told with its status and logged; when nobody answers, that is the error."""
    hook = client.webhooks.create(name="a", url=receiver.url, event_types=["fine_tuning.job.failed"])
    receiver.answers[:] = [418]
    found = client.webhooks.test(hook.id, event_type="fine_tuning.job.succeeded")
    assert (found.status_code, found.success, found.event_type) == (418, True, SUCCEEDED)
    assert client.webhooks.unwrap(receiver.came[0][1], receiver.came[0][0], secret=hook.signing_secret)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client.webhooks.update(hook.id, url=f"http://127.0.0.1:{port}/")
    failed = server.post(f"/v1/webhook_endpoints/{hook.id}/test", {"event_type": SUCCEEDED})
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "address_unreachable")
    logged = server.get(f"/api/webhooks/{hook.id}/deliveries").json()["data"]
    assert [(one["state"], one["status"], one["problem"]) for one in logged] == [
        ("failed", None, "address_unreachable"),
        ("failed", 418, None),
    ]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://169.254.169.254/latest/meta-data/", "address_refused"),
        ("http://10.0.0.1/", "address_refused"),
        ("ftp://127.0.0.1/", "invalid_url"),
        ("http://user:word@127.0.0.1/", "invalid_url"),
    ],
)
def test_an_address_inside_is_refused_when_it_is_registered(server: Server, url: str, code: str) -> None:
    """A webhook cannot be pointed at what the operator did not open."""
    body = {"name": "a", "url": url, "event_types": [SUCCEEDED]}
    answer = server.post("/v1/webhook_endpoints", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
