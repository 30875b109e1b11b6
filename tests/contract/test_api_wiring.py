"""The whole server as `wiring` puts it together: a first run, a job by the real scheduler and worker, a second run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from openai import OpenAI
from tests.api_server import TINY, chat_lines, install_tiny_model, serving

from smedje.settings import Settings, load_settings
from smedje.wiring import build_app

QUESTION = "question 3"


def settings(home: Path) -> Settings:
    """Settings of a server on this state folder with one compute thread."""
    return load_settings({"SMEDJE_HOME": str(home), "SMEDJE_THREADS": "1"})


def test_from_first_run_to_a_tuned_model_and_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The owner key is told once and kept; upload, tune, chat with the result; a second server knows it all."""
    install_tiny_model(tmp_path)
    app = build_app(settings(tmp_path))
    key = (tmp_path / "owner_key").read_text().strip()
    told = capfd.readouterr()
    assert key in told.err
    assert told.out == ""
    with serving(app) as url, OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        file = client.files.create(file=("t.jsonl", chat_lines(40)), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=TINY, training_file=file.id, suffix="wired", seed=1, hyperparameters={"n_epochs": 1}
        )
        deadline = time.monotonic() + 120
        while job.status not in ("succeeded", "failed", "cancelled") and time.monotonic() < deadline:
            time.sleep(0.1)
            job = client.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "succeeded", job.error
        assert job.fine_tuned_model is not None
        assert job.hyperparameters.n_epochs == 1
        assert client.files.content(job.result_files[0]).text.startswith("step,train_loss")
        told_story = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
        assert told_story[0] == "The job has successfully completed"
        assert told_story[-1] == f"Created fine-tuning job: {job.id}"
        answer = ask(client, job.fine_tuned_model)
        assert answer != ask(client, TINY)
    again = build_app(settings(tmp_path))
    assert capfd.readouterr().err.count(key) == 0
    with serving(again) as url, OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        assert client.fine_tuning.jobs.retrieve(job.id) == job
        assert ask(client, job.fine_tuned_model) == answer


def ask(client: OpenAI, model: str) -> list[float]:
    """Log probabilities of a greedy answer: numbers that an adapter cannot leave as they are."""
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=4, temperature=0, logprobs=True
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    return [token.logprob for token in logprobs.content or ()]


def test_the_server_starts_without_compute_libraries(tmp_path: Path) -> None:
    """Building the server loads neither torch nor transformers: those belong to the workers."""
    script = (
        "import sys; from smedje.settings import load_settings; from smedje.wiring import build_app; "
        "build_app(load_settings()); "
        "print([name for name in ('torch', 'transformers', 'peft', 'numpy') if name in sys.modules])"
    )
    env = {**os.environ, "SMEDJE_HOME": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]", found.stdout
