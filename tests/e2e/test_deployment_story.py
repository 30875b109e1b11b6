"""A deployment's whole life on a real server, as one story."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI
from tests.server_process import KEY, MODEL, ServerProcess, engines, finished, server_home, wait_for

NAME = "support"
DEPLOYMENTS = "/api/deployments"


def tuned(server: ServerProcess, client: OpenAI, seed: int) -> str:
    """The name of a model tuned for two steps."""
    more = {"lora_rank": 4, "max_steps": 2, "validation_fraction": 0}
    job = finished(client, server.submit(client, seed=seed, extra_body={"smedje": more}).id)
    assert job.fine_tuned_model is not None
    return job.fine_tuned_model


def call(server: ServerProcess, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    with httpx2.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as http:
        answer = http.request(method, path, **({} if body is None else {"json": body}))
    return answer.status_code, answer.json() if answer.content else None


def fingerprints(server: ServerProcess, count: int) -> Counter[str]:
    """Which models answered so many requests to the deployment."""
    with server.client() as client:
        question = [{"role": "user", "content": "hi"}]
        asked = (client.chat.completions.create(model=NAME, messages=question, max_tokens=1) for _ in range(count))  # type: ignore[call-overload]
        return Counter(answer.system_fingerprint for answer in asked)


def test_a_deployments_life(tmp_path: Path) -> None:
    """Created, tried, given a canary, moved, rolled back at once, kept over a kill -9 of the server, idle until its
    engine is gone, woken by a request, its model protected by name, deleted, and its model after it."""
    server = ServerProcess(server_home(tmp_path), settings={"SMEDJE_ENGINE_IDLE_SECONDS": "2"})
    server.start()
    try:
        with server.client() as client:
            first, second = (tuned(server, client, seed) for seed in (1, 2))
        assert call(server, "POST", DEPLOYMENTS, {"name": NAME, "model": first})[0] == 200
        status, tried = call(server, "POST", f"{DEPLOYMENTS}/{NAME}/test", {"message": "hello"})
        assert (status, tried["completion_tokens"] >= 1) == (200, True)
        [(main, _)] = fingerprints(server, 5).items()

        canary = {"model": second, "percent": 50}
        assert call(server, "PATCH", f"{DEPLOYMENTS}/{NAME}", {"canary": canary})[0] == 200
        drawn = fingerprints(server, 40)
        assert len(drawn) == 2
        assert 5 <= drawn[main] <= 35
        assert call(server, "PATCH", f"{DEPLOYMENTS}/{NAME}", {"model": second})[1]["canary"] is None
        assert main not in fingerprints(server, 5)
        assert call(server, "POST", f"{DEPLOYMENTS}/{NAME}/rollback", {})[1]["model"] == first
        assert set(fingerprints(server, 5)) == {main}

        before = call(server, "GET", f"{DEPLOYMENTS}/{NAME}")[1]
        server.kill()
        server.start()
        assert call(server, "GET", f"{DEPLOYMENTS}/{NAME}")[1] == before
        assert set(fingerprints(server, 1)) == {main}

        asked = time.monotonic()
        wait_for(lambda: not engines(server), what="the idle engine's end", seconds=30)
        slept = time.monotonic() - asked
        asked = time.monotonic()
        assert set(fingerprints(server, 1)) == {main}
        print(f"engine gone {slept:.1f} s after the last answer; woken: {time.monotonic() - asked:.2f} s to an answer")
        assert len(engines(server)) == 1

        status, refused = call(server, "DELETE", f"/v1/models/{first}")
        assert (status, NAME in refused["error"]["message"]) == (409, True), refused
        spoil(server)
        for told in (create_spoilt(server, first), export_spoilt(server, first, tmp_path / "out")):
            assert "chat template" in told
        assert call(server, "DELETE", f"{DEPLOYMENTS}/{NAME}")[0] == 200
        assert call(server, "GET", f"{DEPLOYMENTS}/{NAME}")[0] == 404
        assert call(server, "DELETE", f"/v1/models/{first}")[0] == 200
    finally:
        server.stop()
    wait_for(lambda: not engines(server), what="the engine's end with its server", seconds=30)


def spoil(server: ServerProcess) -> None:
    """Plant one space in the base model's chat template."""
    folder = server.home / "models" / MODEL
    source = folder / "chat_template.jinja"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    source.write_text((source.read_text() if source.is_file() else config["chat_template"]) + " ")


def create_spoilt(server: ServerProcess, model: str) -> str:
    """What another deployment of the model is told."""
    status, told = call(server, "POST", DEPLOYMENTS, {"name": "spoilt", "model": model})
    assert (status, told["error"]["code"]) == (409, "certificate_mismatch")
    return str(told["error"]["message"])


def export_spoilt(server: ServerProcess, model: str, out: Path) -> str:
    """What an export of the model is told."""
    words = ["models", "export", model, str(out), "--format", "merged"]
    env = {"SMEDJE_HOME": str(server.home), "SMEDJE_BASE_URL": server.url, "SMEDJE_API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-m", "smedje.cli", *words], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert not out.exists()
    return done.stderr
