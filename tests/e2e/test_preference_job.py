"""A preference job and a job that keeps its best checkpoint, from upload to answer, with the official client."""

from collections.abc import Iterator

import pytest
from openai import BadRequestError
from tests.server_process import MODEL, ServerProcess, events, finished, server_home
from tests.training_runs import chat_rows, preference_rows

from smedje.store.database import Database
from smedje.store.tables import fine_tuned_models


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A running server with the tiny model."""
    server = ServerProcess(server_home(tmp_path_factory.mktemp("preference")))
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_a_preference_job_from_upload_to_answer(server: ServerProcess) -> None:
    """Pairs in both spellings train with the method dpo; events and results have rewards; the model answers."""
    with server.client() as client:
        pairs = client.files.create(file=("pairs.jsonl", preference_rows(20)), purpose="fine-tune")
        assert client.files.wait_for_processing(pairs.id).status == "processed"
        job = client.fine_tuning.jobs.create(
            model=MODEL,
            training_file=pairs.id,
            seed=7,
            method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2, "batch_size": 4}}},
        )
        assert job.method is not None
        assert job.method.dpo is not None
        assert job.method.dpo.hyperparameters is not None
        assert job.method.dpo.hyperparameters.beta == 0.2
        done = finished(client, job.id)
        assert done.status == "succeeded", done.error
        measured = [e.data for e in events(client, job.id) if e.type == "metrics" and isinstance(e.data, dict)]
        assert all("train_reward_margin" in data for data in measured[1:])
        header, first, *_ = client.files.content(done.result_files[0]).text.splitlines()
        assert "full_valid_reward_accuracy" in header.split(",")
        assert first.startswith("0,")
        assert done.fine_tuned_model is not None
        answer = client.chat.completions.create(
            model=done.fine_tuned_model, messages=[{"role": "user", "content": "steam"}], max_tokens=4
        )
        assert answer.usage is not None
        again = client.fine_tuning.jobs.create(
            model=done.fine_tuned_model,
            training_file=pairs.id,
            method={"type": "dpo"},
            extra_body={"smedje": {"max_steps": 2}},
        )
        assert finished(client, again.id).status == "succeeded"
        zero = next(e.data for e in events(client, again.id) if e.type == "metrics")
        assert isinstance(zero, dict)
        assert abs(float(zero["full_valid_loss"]) - 0.6931) < 1e-3, (
            "rewards are measured against the model it goes on from"
        )


@pytest.mark.slow
def test_files_of_the_other_form_are_refused(server: ServerProcess) -> None:
    """Chat examples for dpo and pairs for supervised are a 400 that says what the method needs; so is a beta of 3."""
    with server.client() as client:
        pairs = client.files.create(file=("pairs.jsonl", preference_rows(12)), purpose="fine-tune")
        chat = client.files.create(file=("chat.jsonl", chat_rows(12)), purpose="fine-tune")
        with pytest.raises(BadRequestError, match="chat examples"):
            client.fine_tuning.jobs.create(model=MODEL, training_file=pairs.id)
        with pytest.raises(BadRequestError, match="preference pairs"):
            client.fine_tuning.jobs.create(model=MODEL, training_file=chat.id, method={"type": "dpo"})
        with pytest.raises(BadRequestError, match="beta"):
            client.fine_tuning.jobs.create(
                model=MODEL,
                training_file=pairs.id,
                method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 3.0}}},
            )


@pytest.mark.slow
def test_the_best_checkpoint_becomes_the_model(server: ServerProcess) -> None:
    """At a rate that overshoots, the fine-tuned model has the adapter of the best step, not that of the last."""
    with server.client() as client:
        rate = {"lora_alpha": 1024.0, "learning_rate": 0.01, "warmup_steps": 23, "scheduler": "constant"}
        options = {**rate, "checkpoint": "best", "eval_every_steps": 3, "max_steps": 24}
        job = server.submit(client, extra_body={"smedje": options})
        done = finished(client, job.id)
        assert done.status == "succeeded", done.error
        losses = {
            int(e.data["step"]): float(e.data["full_valid_loss"])
            for e in events(client, job.id)
            if e.type == "metrics" and isinstance(e.data, dict) and "full_valid_loss" in e.data and e.data["step"]
        }
        best = min(losses, key=lambda step: losses[step])
        assert best != 24, losses
        kept = {c.step_number for c in client.fine_tuning.jobs.checkpoints.list(job.id)}
        assert {best, 24} <= kept
        model = client.models.retrieve(str(done.fine_tuned_model))
        assert model.id == done.fine_tuned_model
        assert server_step(server, str(done.fine_tuned_model)) == best


@pytest.mark.slow
def test_a_job_that_stops_early_succeeds(server: ServerProcess) -> None:
    """With a threshold that nothing reaches, the job ends after three evaluations and its model is the last step's."""
    with server.client() as client:
        watch = {"eval_every_steps": 2, "early_stopping_patience": 2, "early_stopping_threshold": 100.0}
        job = server.submit(client, extra_body={"smedje": {**watch, "max_steps": 24}})
        done = finished(client, job.id)
        assert done.status == "succeeded", done.error
        assert max(c.step_number for c in client.fine_tuning.jobs.checkpoints.list(job.id)) == 6
        assert any("Stopped early after step 6" in event.message for event in events(client, job.id))
        assert server_step(server, str(done.fine_tuned_model)) == 6


def server_step(server: ServerProcess, model: str) -> int:
    """The step of a fine-tuned model, from the server's own database."""
    database = Database(f"sqlite:///{server.home / 'smedje.db'}")
    try:
        with database.transaction() as tx:
            return int(
                tx.execute(fine_tuned_models.select().where(fine_tuned_models.c.id == model)).mappings().one()["step"]
            )
    finally:
        database.close()
