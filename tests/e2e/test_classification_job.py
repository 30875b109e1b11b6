"""A classifier from upload to answer, with the official client: labels, their probabilities, deployment, continuing."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI
from tests.server_process import KEY, MODEL, ServerProcess, events, finished, server_home
from tests.training_runs import chat_rows, labelled_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A running server with the tiny model."""
    server = ServerProcess(server_home(tmp_path_factory.mktemp("classes")))
    server.start()
    yield server
    server.stop()


def create(client: OpenAI, model: str, training_file: str, **options: Any) -> Any:
    """A classification job of a few epochs."""
    numbers = {"hyperparameters": {"n_epochs": 6, "batch_size": 6}}
    method: Any = {"type": "classification", "classification": numbers}
    body = {"smedje": {"learning_rate": 0.01, **options}}
    return client.fine_tuning.jobs.create(
        model=model, training_file=training_file, method=method, seed=3, extra_body=body
    )


@pytest.fixture(scope="module")
def classifier(server: ServerProcess) -> str:
    """The name of a classifier that was trained through the API."""
    with server.client() as client:
        file = client.files.create(file=("labels.jsonl", labelled_rows(96)), purpose="fine-tune")
        assert client.files.wait_for_processing(file.id).status == "processed"
        job = create(client, MODEL, file.id, class_weights="balanced")
        done = finished(client, job.id)
        assert done.status == "succeeded", done.error
        assert done.method is not None
        assert done.method.type == "classification"
        measured = [e.data for e in events(client, job.id) if e.type == "metrics" and isinstance(e.data, dict)]
        last = max(measured, key=lambda data: float(str(data["step"])))
        assert float(str(last["full_valid_accuracy"])) >= 0.9
        assert 0.8 <= float(str(last["full_valid_macro_f1"])) <= 1.0
        header, *_ = client.files.content(done.result_files[0]).text.splitlines()
        assert {"full_valid_accuracy", "full_valid_macro_f1", "learning_rate"} <= set(header.split(","))
        return str(done.fine_tuned_model)


def test_the_answer_is_the_label_with_its_probability(server: ServerProcess, classifier: str) -> None:
    """Whatever the temperature; the log probabilities of all labels are there and sum to one; streaming is the same."""
    with server.client() as client:
        for text, label in (("kettle brew filter steam", "make"), ("clean pump water grind", "care")):
            messages: Any = [{"role": "user", "content": text}]
            answer = client.chat.completions.create(
                model=classifier, messages=messages, logprobs=True, top_logprobs=20, temperature=2.0
            )
            choice = answer.choices[0]
            assert (choice.message.content, choice.finish_reason) == (label, "stop")
            assert choice.logprobs is not None
            assert choice.logprobs.content is not None
            (told,) = choice.logprobs.content
            assert told.token == label
            top = {one.token: one.logprob for one in told.top_logprobs}
            assert top.keys() == {"make", "care", "sign"}
            assert sum(math.exp(value) for value in top.values()) == pytest.approx(1.0, abs=1e-4)
            assert max(top, key=lambda name: top[name]) == label
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 1
            stream = client.chat.completions.create(model=classifier, messages=messages, stream=True)
            assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == label


def test_a_deployed_classifier_answers_beside_the_base_model(server: ServerProcess, classifier: str) -> None:
    """Under its deployment's name; the base model on the same engine still writes text."""
    with server.client() as client:
        made = httpx.post(
            f"{server.url}/api/deployments",
            json={"name": "acts", "model": classifier},
            headers={"Authorization": f"Bearer {KEY}"},
        )
        assert made.status_code in (200, 201), made.text
        messages: Any = [{"role": "user", "content": "kettle brew filter steam"}]
        assert client.chat.completions.create(model="acts", messages=messages).choices[0].message.content == "make"
        text = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3, temperature=0)
        assert text.usage is not None
        assert text.usage.completion_tokens == 3
        assert text.choices[0].message.content not in ("make", "care", "sign")


def test_what_has_no_meaning_for_a_classifier_is_refused(server: ServerProcess, classifier: str) -> None:
    """A bias on tokens, a bare prompt, a chat job on top of it, labels that do not exist, chat rows for labels."""
    with server.client() as client:
        messages: Any = [{"role": "user", "content": "kettle"}]
        with pytest.raises(BadRequestError, match="logit_bias"):
            client.chat.completions.create(model=classifier, messages=messages, logit_bias={"5": 3})
        with pytest.raises(BadRequestError, match="prompt"):
            client.completions.create(model=classifier, prompt="kettle")
        chat = client.files.create(file=("chat.jsonl", chat_rows(12)), purpose="fine-tune")
        with pytest.raises(BadRequestError, match="is a classifier"):
            client.fine_tuning.jobs.create(model=classifier, training_file=chat.id)
        with pytest.raises(BadRequestError, match="labelled texts"):
            create(client, MODEL, chat.id)
        with pytest.raises(BadRequestError, match="class_weights"):
            client.fine_tuning.jobs.create(
                model=MODEL, training_file=chat.id, extra_body={"smedje": {"class_weights": "balanced"}}
            )
        labels = client.files.create(file=("labels.jsonl", labelled_rows(24)), purpose="fine-tune")
        failed = finished(client, create(client, MODEL, labels.id, class_weights={"nosuch": 2.0}).id)
        assert failed.status == "failed"
        assert failed.error is not None
        assert "nosuch" in str(failed.error.message)


def test_a_classifier_is_continued_with_its_head(server: ServerProcess, classifier: str) -> None:
    """Step zero of the next job is as good as the classifier was; a new label joins the known ones."""
    rows = labelled_rows(24) + b"".join(
        json.dumps({"text": f"code code {n}", "label": "code"}).encode() + b"\n" for n in range(6)
    )
    with server.client() as client:
        known = client.files.create(file=("known.jsonl", labelled_rows(60, seed=5)), purpose="fine-tune")
        job = finished(client, create(client, classifier, known.id, max_steps=1, validation_fraction=0.5).id)
        assert job.status == "succeeded", job.error
        zero = next(e.data for e in events(client, job.id) if e.type == "metrics" and isinstance(e.data, dict))
        assert float(str(zero["full_valid_accuracy"])) >= 0.8
        more = client.files.create(file=("more.jsonl", rows), purpose="fine-tune")
        job = finished(client, create(client, classifier, more.id, max_steps=1, class_weights={"code": 4.0}).id)
        assert job.status == "succeeded", job.error


def test_a_classifier_is_exported_to_transformers(server: ServerProcess, classifier: str, tmp_path: Path) -> None:
    """The merged folder is a sequence classifier of transformers with the same answer; GGUF is refused in words."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    environment = {
        **os.environ,
        "SMEDJE_HOME": str(server.home),
        "SMEDJE_BASE_URL": server.url,
        "SMEDJE_API_KEY": KEY,
    }
    command = [sys.executable, "-m", "smedje.cli", "models", "export", classifier, str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--format", "merged"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "kettle brew filter steam"}], add_generation_prompt=True, return_tensors="pt"
    )
    tokens = prompt if isinstance(prompt, torch.Tensor) else prompt["input_ids"]
    with torch.no_grad():
        theirs = torch.log_softmax(model(input_ids=tokens).logits[0], -1)
    with server.client() as client:
        answer = client.chat.completions.create(
            model=classifier,
            messages=[{"role": "user", "content": "kettle brew filter steam"}],
            logprobs=True,
            top_logprobs=3,
        )
    assert answer.choices[0].logprobs is not None
    told = (answer.choices[0].logprobs.content or [])[0].top_logprobs
    ours = {one.token: one.logprob for one in told}
    assert {model.config.id2label[n]: pytest.approx(float(v), abs=1e-3) for n, v in enumerate(theirs)} == ours
    command[-1] = str(tmp_path / "out.gguf")
    done = subprocess.run([*command, "--format", "gguf"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "classifier" in done.stderr
