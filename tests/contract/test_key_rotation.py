"""Keys are rotated under load, and no request is dropped."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import httpx2
import pytest
from tests.api_server import TINY, Server

from smedje.errors import AuthenticationFailed
from smedje.services import projects

ROTATIONS = 8
CLIENTS = 4
# Each client goes on with a secret for so many requests before it looks for the newest one.
SLOW = 5
CHAT = {"model": TINY, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@dataclass
class Load:
    """What the clients share: the newest secret, and what they were answered."""

    secret: str
    stop: threading.Event = field(default_factory=threading.Event)
    begun: threading.Barrier = field(default_factory=lambda: threading.Barrier(CLIENTS + 1))
    answers: Counter[int] = field(default_factory=Counter)
    used: set[str] = field(default_factory=set)

    def run(self, url: str, number: int) -> None:
        """Ask until told to stop: every client lists models, every second one also chats."""
        found: Counter[int] = Counter()
        with httpx2.Client(base_url=url, timeout=60) as http:
            self.begun.wait(30)
            while not self.stop.is_set():
                secret = self.secret
                headers = {"authorization": f"Bearer {secret}"}
                for _ in range(SLOW):
                    found[http.get("/v1/models", headers=headers).status_code] += 1
                if number % 2:
                    found[http.post("/v1/chat/completions", headers=headers, json=CHAT).status_code] += 1
                self.used.add(secret)
        self.answers.update(found)


def test_no_request_is_dropped_while_keys_are_rotated(server: Server) -> None:
    """Clients that switch to the new secret late are answered all the while; when the grace period is over, an old
    secret says that it has expired, and the newest works on."""
    created = server.post("/api/keys", {"name": "under load", "role": "ai_developer"})
    assert created.status_code == 200, created.text
    made = created.json()
    load = Load(secret=made["secret"])
    threads = [threading.Thread(target=load.run, args=(server.url, number)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    load.begun.wait(30)
    ids, secrets = [made["id"]], [made["secret"]]
    for _ in range(ROTATIONS):
        turned = server.post(f"/api/keys/{ids[-1]}/rotate", {"grace_seconds": 600}).json()
        ids.append(turned["id"])
        secrets.append(turned["secret"])
        load.secret = turned["secret"]
        # The next rotation comes when somebody has used this secret, so that each is under load.
        deadline = time.monotonic() + 30
        while turned["secret"] not in load.used:
            assert time.monotonic() < deadline
            assert all(thread.is_alive() for thread in threads)
            threads[0].join(0.01)
    load.stop.set()
    for thread in threads:
        thread.join(60)
    print(f"{sum(load.answers.values())} requests, {ROTATIONS} rotations: {dict(load.answers)}")
    assert set(load.answers) == {200}
    assert sum(load.answers.values()) > CLIENTS * SLOW * 2
    later = replace(server.ctx, now=lambda: time.time() + 601)
    for old in secrets[:-1]:
        with pytest.raises(AuthenticationFailed, match="expired"):
            projects.authenticate(later, old)
    assert projects.authenticate(later, secrets[-1]).key_id == ids[-1]
