"""A server whose engines are vLLM's: what our own engine said on the same state folder, it says too."""

import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import BadRequestError, OpenAI
from tests.server_process import MODEL, ServerProcess, finished, wait_for
from tests.vllm_programs import ENVIRONMENT, EXTRA, HIDDEN, PROGRAM, vllm_program

from smedje.modeling.folder import model_folder, models_home, write_manifest
from smedje.modeling.tiny_random import write_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# With the real vLLM a real model answers; its attention on CPUs knows no tiny ones.
BASE = "smollm2-135m-instruct" if PROGRAM else MODEL
QUESTIONS = ("What is the capital of Denmark?", "Name three colours.")
FORM: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "town",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"north": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
            "required": ["north", "size"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def home(tmp_path: Path, model_home: Path) -> Path:
    """A state folder with the base model."""
    home = tmp_path / "home"
    if PROGRAM:
        models_home(home).mkdir(parents=True)
        model_folder(home, BASE).symlink_to(model_folder(model_home, BASE).resolve())
    else:
        folder = model_folder(home, BASE)
        write_tiny_llama(folder, hidden=HIDDEN)
        write_manifest(folder, name=BASE, source="generated")
    return home


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What makes vLLM answer; an engine rests after eight seconds."""
    monkeypatch.delenv("SMEDJE_TEST_VLLM", raising=False)
    return {
        "SMEDJE_ENGINE": "vllm",
        "SMEDJE_VLLM": str(vllm_program(tmp_path)),
        "SMEDJE_VLLM_OPTIONS": " ".join((*EXTRA, "--max-model-len 512")),
        "SMEDJE_ENGINE_IDLE_SECONDS": "8",
        **ENVIRONMENT,
    }


def tuned(server: ServerProcess, client: OpenAI) -> str:
    """The name of a model tuned for two steps."""
    more = {"lora_rank": 4, "max_steps": 2, "validation_fraction": 0}
    job = finished(client, server.submit(client, model=BASE, extra_body={"smedje": more}).id, seconds=300)
    assert job.fine_tuned_model is not None
    return job.fine_tuned_model


def answers(client: OpenAI, *models: str) -> list[tuple[str | None, list[str], int]]:
    """Greedy text, tokens and counted tokens of each question by each model."""
    found = []
    for model in models:
        for question in QUESTIONS:
            answer = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=16,
                logprobs=True,
                top_logprobs=2,
                timeout=600,
            )
            choice, usage = answer.choices[0], answer.usage
            assert usage is not None
            logprobs = (choice.logprobs and choice.logprobs.content) or []
            found.append((choice.message.content, [one.token for one in logprobs], usage.completion_tokens))
    return found


def vllms(home: Path) -> list[psutil.Process]:
    """The engine processes on this state folder that are vLLM's or ours for it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if {"smedje.serving.vllm_worker", "serve", "tests.vllm_stand_in"} & set(words) and "smedje.cli" not in words:
            found += [process] * any(str(home) in word for word in words)
    return found


def test_vllm_says_what_our_engine_said(home: Path, settings: dict[str, str]) -> None:
    """Base and tuned model, plain, streamed and held to a schema; counted, measured, idle until all of it is gone."""
    ours, theirs = ServerProcess(home), ServerProcess(home, settings=settings)
    ours.start()
    try:
        with ours.client() as client:
            model = tuned(ours, client)
            expected = answers(client, BASE, model)
    finally:
        ours.stop()
    theirs.start()
    try:
        with theirs.client() as client:
            began = time.monotonic()
            assert answers(client, BASE, model) == expected
            print(f"first answers after {time.monotonic() - began:.0f} s")
            question: Any = [{"role": "user", "content": QUESTIONS[0]}]
            pieces = client.chat.completions.create(
                model=model, messages=question, temperature=0, max_tokens=16, stream=True
            )
            streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
            assert streamed == expected[2][0]
            formed = client.chat.completions.create(
                model=model, messages=question, response_format=FORM, max_tokens=60, seed=3
            )
            assert set(json.loads(formed.choices[0].message.content or "")) == {"north", "size"}
            broken: Any = {**FORM, "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}}
            with pytest.raises(BadRequestError):
                client.chat.completions.create(model=BASE, messages=question, response_format=broken, max_tokens=5)
        assert vllms(home)
        wait_for(lambda: not vllms(home), what="the engine to rest", seconds=60)
    finally:
        theirs.stop()
    log = (home / "logs" / f"engine-{BASE}.log").read_text()
    assert "capital" not in log, "prompts are not logged"


def test_a_vllm_that_is_not_there_stops_the_start(home: Path, settings: dict[str, str]) -> None:
    """The server refuses to start and names the setting."""
    server = ServerProcess(home, settings={**settings, "SMEDJE_VLLM": "/nowhere/vllm"})
    with pytest.raises(AssertionError, match="SMEDJE_VLLM"):
        server.start()
