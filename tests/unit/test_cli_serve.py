"""`smedje serve`: one line when it is ready, this machine only, and an end that leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from smedje.cli.main import run
from smedje.cli.serve import listen, url_of
from smedje.errors import Unavailable


def test_a_taken_port_is_told() -> None:
    """The error names the port, and its code leads to the remedy."""
    with listen("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(Unavailable, match=str(port)) as caught:
            listen("127.0.0.1", port)
    assert caught.value.code == "port_in_use"


def test_the_url_is_the_one_to_type() -> None:
    """A free port is filled in, and an IPv6 address stands in brackets."""
    with listen("127.0.0.1", 0) as held:
        assert url_of(held) == f"http://127.0.0.1:{held.getsockname()[1]}"
    if socket.has_ipv6:
        with listen("::1", 0) as held:
            assert url_of(held) == f"http://[::1]:{held.getsockname()[1]}"


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGTERM to catch on Windows")
def test_other_machines_and_names_are_let_in_only_by_option(tmp_path: Path) -> None:
    """An address that others reach needs --allow-remote, and then any name does; --allow-host names one more."""

    def asked(words: list[str], name: str) -> int:
        command = [sys.executable, "-m", "smedje.cli", "serve", "--port", "0", "--json", *words]
        env = {"SMEDJE_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            port = json.loads(server.stdout.readline())["url"].rpartition(":")[2]
            answer = httpx2.get(f"http://127.0.0.1:{port}/healthz", headers={"host": name}, trust_env=False)
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)
            return answer.status_code

    assert run(["serve", "--host", "0.0.0.0", "--port", "0"]) == 2
    named = ["--allow-host", "forge.example.org"]
    assert asked(named, "forge.example.org") == 200
    assert asked(named, "other.example.org") == 400
    assert asked(["--host", "0.0.0.0", "--allow-remote"], "other.example.org") == 200


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGTERM to catch on Windows")
def test_it_starts_answers_and_ends_on_request(tmp_path: Path) -> None:
    """Standard output is one line of JSON; the server answers; SIGTERM ends it, and a second start finds its key."""
    command = [sys.executable, "-m", "smedje.cli", "serve", "--port", "0", "--json"]
    env = {"SMEDJE_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
    told = []
    for _ in range(2):
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            with httpx2.Client(base_url=url, trust_env=False) as http:
                assert http.get("/healthz").status_code == 200
                key = (tmp_path / "home" / "owner_key").read_text().strip()
                assert http.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
                assert http.get("/v1/models").status_code == 401
            server.send_signal(signal.SIGTERM)
            out, err = server.communicate(timeout=60)
            assert out == ""
            assert "Traceback" not in err
            told.append("owner key" in err)
    assert told == [True, False]
