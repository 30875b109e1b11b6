"""A deployment's whole life on a real server, as one story, and what it saw; run it with -s to read that."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import httpx2
import psutil
from openai import APIConnectionError, APIError, APIStatusError, OpenAI
from tests.server_process import KEY, MODEL, ServerProcess, engines, finished, server_home, wait_for

NAME = "support"
DEPLOYMENTS = "/api/deployments"
QUESTION: Any = [{"role": "user", "content": "hi"}]
CLIENTS, BACK_SECONDS = 8, 10.0
# What an error may say besides that nobody is there: ask again.
TRY_AGAIN = ("engine_gone", "engine_unreachable", "stopping")
# A client waits a little before it asks again, as they all do.
PAUSE_SECONDS = 0.1


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
        asked = (client.chat.completions.create(model=NAME, messages=QUESTION, max_tokens=1) for _ in range(count))
        return Counter(str(answer.system_fingerprint) for answer in asked)


def told_to_try_again(problem: APIError | httpx.TransportError) -> str:
    """How a client learns that it did not get its answer and may ask again; fails for anything else."""
    if isinstance(problem, APIConnectionError | httpx.TransportError):
        return "connection lost"
    assert problem.code in TRY_AGAIN, repr(problem)
    if isinstance(problem, APIStatusError):
        assert (problem.status_code, problem.response.headers["retry-after"].isdigit()) == (503, True)
        return f"503 {problem.code}"
    return f"stream ended with {problem.code}"


def asked_once(server: ServerProcess, *, stream: bool) -> str:
    """What became of one question of the official client, which does not retry by itself here."""
    try:
        with server.client() as client:
            answer: Any = client.chat.completions.create(model=NAME, messages=QUESTION, max_tokens=200, stream=stream)
            ends = [chunk.choices[0].finish_reason for chunk in answer] if stream else [answer.choices[0].finish_reason]
        assert ends[-1] in ("stop", "length"), "an answer that ends has a finish reason"
        return "answered"
    except (APIError, httpx.TransportError) as problem:
        return told_to_try_again(problem)


def under_load(server: ServerProcess, blow: Callable[[ServerProcess], float]) -> tuple[float, Counter[str]]:
    """Seconds from a blow to the next whole answer while clients ask without end, and what became of all questions."""
    stop, seen, wrong = threading.Event(), list[tuple[float, float, str]](), list[BaseException]()

    def asking(number: int) -> None:
        try:
            while not stop.is_set():
                began = time.monotonic()
                seen.append((began, time.monotonic(), asked_once(server, stream=number % 2 == 0)))
                stop.wait(0 if seen[-1][2] == "answered" else PAUSE_SECONDS)
        except BaseException as problem:
            wrong.append(problem)

    def answer_since(moment: float) -> float | None:
        assert not wrong, wrong
        return min((end for began, end, what in seen if what == "answered" and began > moment), default=None)

    threads = [threading.Thread(target=asking, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: answer_since(0.0), what="an answer before the blow")
        struck = blow(server)
        back = wait_for(lambda: answer_since(struck), what="an answer after the blow", seconds=30) - struck
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong
    return back, Counter(what for _, _, what in seen)


def restart(server: ServerProcess) -> float:
    """kill -9 the server and start it again on its state; the moment of the kill."""
    server.kill()
    struck = time.monotonic()
    server.start()
    return struck


def kill_engines(server: ServerProcess) -> float:
    """kill -9 of every engine of the server; the moment at which they are gone."""
    struck = engines(server)
    for process in struck:
        process.kill()
    assert not psutil.wait_procs(struck, 10)[1]
    return time.monotonic()


def test_a_deployments_life(tmp_path: Path) -> None:
    """Created, tried, given a canary, moved, rolled back at once, answering again after a kill -9 of its engine and of
    the server under load while every client gets its answer or is told to try again, idle until its engine is gone,
    woken by a request, its model protected by name, deleted, and its model after it."""
    server = ServerProcess(server_home(tmp_path), settings={"SMEDJE_ENGINE_IDLE_SECONDS": "2"})
    server.start()
    try:
        with server.client() as client:
            first, second = (tuned(server, client, seed) for seed in (1, 2))
        assert call(server, "POST", DEPLOYMENTS, {"name": NAME, "model": first})[0] == 200
        status, tried = call(server, "POST", f"{DEPLOYMENTS}/{NAME}/test", {"message": "hello"})
        assert (status, tried["completion_tokens"] >= 1) == (200, True)
        print(f"\ncreated; its test call: {tried['completion_tokens']} tokens in {tried['seconds']:.2f} s")
        [(main, _)] = fingerprints(server, 5).items()

        canary = {"model": second, "percent": 50}
        assert call(server, "PATCH", f"{DEPLOYMENTS}/{NAME}", {"canary": canary})[0] == 200
        drawn = fingerprints(server, 40)
        assert len(drawn) == 2
        assert 5 <= drawn[main] <= 35
        print(f"canary at 50 %: {drawn[main]} of 40 answers by the model, {40 - drawn[main]} by the canary")
        assert call(server, "PATCH", f"{DEPLOYMENTS}/{NAME}", {"model": second})[1]["canary"] is None
        assert main not in fingerprints(server, 5)
        assert call(server, "POST", f"{DEPLOYMENTS}/{NAME}/rollback", {})[1]["model"] == first
        assert set(fingerprints(server, 5)) == {main}
        print("promoted, and rolled back at once: 5 of 5 answers by the model before")

        before = call(server, "GET", f"{DEPLOYMENTS}/{NAME}")[1]
        for what, blow in (("engine", kill_engines), ("server", restart)):
            back, ends = under_load(server, blow)
            print(f"kill -9 of the {what} under {CLIENTS} clients: an answer {back:.2f} s later; {dict(ends)}")
            assert back < BACK_SECONDS
            assert sum(ends.values()) > ends["answered"], "it was struck while it answered"
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
        print(f"deleting its model: {status}, {refused['error']['message']}")
        spoil(server)
        for told in (create_spoilt(server, first), export_spoilt(server, first, tmp_path / "out")):
            assert "chat template" in told
        assert call(server, "DELETE", f"{DEPLOYMENTS}/{NAME}")[0] == 200
        assert call(server, "GET", f"{DEPLOYMENTS}/{NAME}")[0] == 404
        assert call(server, "DELETE", f"/v1/models/{first}")[0] == 200
        print("deployment deleted, and then its model")
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
