"""Jobs that tune all weights, and jobs with DoRA: from upload to answer, killed in between, continued, exported."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from tests.server_process import KEY, MODEL, ServerProcess, events, finished, server_home, steps, wait_for
from tests.training_runs import chat_rows

pytestmark = pytest.mark.slow
ASK: Any = [{"role": "user", "content": "kettle brew steam"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A running server with the tiny model."""
    server = ServerProcess(server_home(tmp_path_factory.mktemp("full")))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def file(server: ServerProcess) -> str:
    with server.client() as client:
        return client.files.create(file=("rows.jsonl", chat_rows(40)), purpose="fine-tune").id


def create(client: OpenAI, file: str, *, model: str = MODEL, **options: Any) -> Any:
    """A short job with these options."""
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}}
    return client.fine_tuning.jobs.create(
        model=model, training_file=file, seed=5, method=method, extra_body={"smedje": {"max_steps": 10, **options}}
    )


def answer(client: OpenAI, model: str) -> str:
    """What it says, greedily."""
    made = client.chat.completions.create(model=model, messages=ASK, max_tokens=8, temperature=0)
    return str(made.choices[0].message.content)


@pytest.fixture(scope="module")
def tuned(server: ServerProcess, file: str) -> str:
    """The name of a model whose every weight was tuned."""
    with server.client() as client:
        done = finished(client, create(client, file, tuning="full", learning_rate=2e-3).id)
        assert done.status == "succeeded", done.error
        return str(done.fine_tuned_model)


def test_a_full_tuning_answers_beside_the_base_model(server: ServerProcess, tuned: str, file: str) -> None:
    """From an engine of its own; the base model's answer is what it was; the job says what was trained."""
    with server.client() as client:
        base = answer(client, MODEL)
        assert answer(client, tuned) != base
        assert answer(client, MODEL) == base
        job = next(j for j in client.fine_tuning.jobs.list() if j.fine_tuned_model == tuned)
        resolved = (job.model_extra or {})["smedje"]["resolved"]
        assert resolved["tuning"] == "full"
        assert "lora_rank" not in resolved


def test_a_killed_full_tuning_goes_on(server: ServerProcess, file: str) -> None:
    """kill -9 of its worker in the middle: the job succeeds all the same, every step reported once."""
    with server.client() as client:
        job = create(client, file, tuning="full", learning_rate=1e-3, max_steps=40)
        wait_for(lambda: [s for s in steps(client, job.id) if s >= 2], what="a few steps")
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        done = finished(client, job.id)
        assert done.status == "succeeded", done.error
        reported = steps(client, job.id)
        assert sorted(reported) == sorted(set(reported))


def test_training_goes_on_from_what_was_tuned(server: ServerProcess, tuned: str, file: str) -> None:
    """A full tuning goes on from a full tuning, from LoRA and from DoRA; LoRA and DoRA from themselves and checkpoints;
    each starts with the loss where the other ended. An adapter on a full tuning is refused when the job is made."""
    with server.client() as client:

        def last(name: str) -> float:
            (found,) = (j for j in client.fine_tuning.jobs.list(limit=100) if j.fine_tuned_model == name)
            data = [e.data for e in events(client, found.id) if e.type == "metrics" and isinstance(e.data, dict)]
            return float(str(max(data, key=lambda d: float(str(d["step"])))["full_valid_loss"]))

        def goes_on(start: str, from_loss: float, **options: Any) -> str:
            done = finished(client, create(client, file, model=start, max_steps=2, **options).id)
            assert done.status == "succeeded", done.error
            zero = next(e.data for e in events(client, done.id) if e.type == "metrics" and isinstance(e.data, dict))
            assert float(str(zero["full_valid_loss"])) == pytest.approx(from_loss, rel=1e-4)
            return str(done.fine_tuned_model)

        goes_on(tuned, last(tuned), tuning="full", learning_rate=1e-3)
        for adapter in ({"lora_rank": 4}, {"lora_rank": 4, "dora": True}):
            first = finished(client, create(client, file, **adapter, learning_rate=0.01).id)
            assert first.status == "succeeded", first.error
            name = str(first.fine_tuned_model)
            assert answer(client, name) != answer(client, MODEL)
            goes_on(name, last(name), learning_rate=1e-3)
            goes_on(name, last(name), tuning="full", learning_rate=1e-3)
            checkpoint = client.fine_tuning.jobs.checkpoints.list(first.id).data[0]
            goes_on(
                checkpoint.fine_tuned_model_checkpoint, checkpoint.metrics.full_valid_loss or 0.0, learning_rate=1e-3
            )
        with pytest.raises(BadRequestError, match=r"smedje\.tuning full"):
            create(client, file, model=tuned)
        with pytest.raises(BadRequestError, match="learning_rate"):
            create(client, file, tuning="full")
        with pytest.raises(BadRequestError, match="lora_rank"):
            create(client, file, tuning="full", learning_rate=1e-3, lora_rank=4)


def test_a_full_tuning_is_exported(server: ServerProcess, tuned: str, tmp_path: Path) -> None:
    """As a merged folder and as GGUF; as an adapter it is refused in words."""
    environment = {
        **os.environ,
        "SMEDJE_HOME": str(server.home),
        "SMEDJE_BASE_URL": server.url,
        "SMEDJE_API_KEY": KEY,
    }

    def export(kind: str, out: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "smedje.cli", "models", "export", tuned, str(tmp_path / out), "--format", kind]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    merged = export("merged", "merged")
    assert merged.returncode == 0, merged.stderr
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size > 10_000
    refused = export("adapter", "adapter")
    assert refused.returncode != 0
    assert "merged" in refused.stderr
