"""The official openai client, synchronous, against a live server: what scripts written for OpenAI rely on."""

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.api_server import TINY, Server, chat_lines

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


def test_a_file_lives_from_upload_to_deletion(server: Server) -> None:
    """Upload, wait, look, read the same bytes back, delete, and it is gone."""
    content = chat_lines(12)
    client = server.client()
    made = client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(content), "train.jsonl", "fine-tune")
    assert client.files.wait_for_processing(made.id).status == "processed"
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == content
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError) as missing:
        client.files.retrieve(made.id)
    assert missing.value.code == "file_not_found"


def test_lists_page_by_themselves(server: Server) -> None:
    """Iterating a list fetches page after page and meets every file once, newest first, or oldest first on request."""
    client = server.client()
    ids = [server.upload(chat_lines(10 + n)) for n in range(5)]
    seen = [file.id for file in client.files.list(limit=2)]
    assert seen[:5] == ids[::-1]
    assert len(seen) == len(set(seen))
    assert [file.id for file in client.files.list(limit=2, order="asc")] == seen[::-1]
    assert [file.id for file in client.files.list(purpose="fine-tune-results")] == []


def test_a_job_has_the_shape_that_the_client_knows(server: Server) -> None:
    """Required keys are there, lists are lists, what is not known yet is null, "auto" stays until it is resolved."""
    client = server.client()
    file = server.upload(chat_lines(12))
    job = client.fine_tuning.jobs.create(
        model=TINY,
        training_file=file,
        suffix="try-1",
        seed=42,
        metadata={"team": "red"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        extra_body={"smedje": {"lora_rank": 4}},
    )
    assert (job.object, job.status, job.model, job.training_file) == ("fine_tuning.job", "validating_files", TINY, file)
    assert (job.seed, job.metadata, job.result_files, job.integrations) == (42, {"team": "red"}, [], [])
    assert job.hyperparameters.n_epochs == 2
    assert job.hyperparameters.batch_size == "auto"
    assert job.method is not None
    assert job.method.type == "supervised"
    raw = server.get(f"/v1/fine_tuning/jobs/{job.id}").json()
    nulls = {"error", "fine_tuned_model", "finished_at", "trained_tokens", "estimated_finish", "validation_file"}
    assert {name for name, value in raw.items() if value is None} == nulls
    assert raw["user_provided_suffix"] == "try-1"
    assert raw["smedje"] == {"lora_rank": 4, "resolved": None}
    assert client.fine_tuning.jobs.retrieve(job.id) == job


def test_the_old_form_of_hyperparameters_still_works(server: Server) -> None:
    """Scripts that send top-level hyperparameters get the same job."""
    job = server.client().fine_tuning.jobs.create(
        model=TINY,
        training_file=server.upload(chat_lines(12)),
        hyperparameters={"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 0.5},
    )
    assert (job.hyperparameters.n_epochs, job.hyperparameters.learning_rate_multiplier) == (3, 0.5)


def test_jobs_are_listed_newest_first_and_by_metadata(server: Server) -> None:
    """The list pages by itself; `metadata` keeps the jobs that carry the pair."""
    client = server.client()
    file = server.upload(chat_lines(12))
    ids = [
        client.fine_tuning.jobs.create(model=TINY, training_file=file, metadata={"turn": str(n % 2)}).id
        for n in range(5)
    ]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)][:5] == ids[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"turn": "1"})] == [ids[3], ids[1]]


def test_a_cancelled_job_tells_its_story_once(server: Server) -> None:
    """Cancel answers with the cancelled job; a second cancel is a conflict; each event is there once, newest first."""
    client = server.client()
    job = client.fine_tuning.jobs.create(model=TINY, training_file=server.upload(chat_lines(12)))
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    assert cancelled.status == "cancelled"
    assert cancelled.finished_at is not None
    with pytest.raises(openai.ConflictError) as second:
        client.fine_tuning.jobs.cancel(job.id)
    assert second.value.response.headers["x-should-retry"] == "false"
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=1)]
    assert messages == ["The job has been cancelled", f"Created fine-tuning job: {job.id}"]
    assert list(client.fine_tuning.jobs.checkpoints.list(job.id)) == []


def test_models_are_listed_and_looked_up(server: Server) -> None:
    """An installed base model is in the list and by itself; an unknown one is a 404 that suggests the nearest name."""
    client = server.client()
    assert TINY in [model.id for model in client.models.list()]
    assert client.models.retrieve(TINY).object == "model"
    with pytest.raises(openai.NotFoundError, match=f"Did you mean .*{TINY}"):
        client.models.retrieve("tiny-randm")


def test_a_chat_answer_counts_its_tokens(server: Server) -> None:
    """One choice, its text, why it ended, and a usage that adds up."""
    answer = server.client().chat.completions.create(model=TINY, messages=QUESTION, max_tokens=6, temperature=0)
    choice = answer.choices[0]
    assert (answer.object, answer.model, choice.index, choice.finish_reason) == ("chat.completion", TINY, 0, "length")
    assert choice.message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6


def test_a_seed_repeats_and_choices_differ(server: Server) -> None:
    """The same seed gives the same choices again, and the choices of one request are not copies of each other."""

    def ask() -> list[str | None]:
        answer = server.client().chat.completions.create(model=TINY, messages=QUESTION, max_tokens=12, n=3, seed=5)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = ask()
    assert first == ask()
    assert len(set(first)) == 3


def test_a_stop_string_ends_the_text_before_it(server: Server) -> None:
    """The text up to the stop string, without it, and finish reason stop."""
    client = server.client()
    whole = client.chat.completions.create(model=TINY, messages=QUESTION, max_tokens=40, seed=5).choices[0]
    text = whole.message.content or ""
    stop = next(c for c in text if text.index(c) > 3 and c.isprintable() and c != "\ufffd")
    cut = client.chat.completions.create(model=TINY, messages=QUESTION, max_tokens=40, seed=5, stop=[stop]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == text[: text.index(stop)]


def test_log_probabilities_come_with_every_token(server: Server) -> None:
    """As many entries as tokens, each with the asked number of likely tokens in falling order."""
    answer = server.client().chat.completions.create(
        model=TINY, messages=QUESTION, max_tokens=5, logprobs=True, top_logprobs=3, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    for token in logprobs.content:
        top = [entry.logprob for entry in token.top_logprobs]
        assert top == sorted(top, reverse=True)
        assert len(top) == 3
        assert token.logprob == pytest.approx(top[0], abs=1e-6)  # greedy takes the likeliest


def test_errors_become_the_clients_own_exceptions(server: Server) -> None:
    """Bad request, bad key and missing thing arrive as the exceptions that scripts catch, with code and param."""
    client = server.client()
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=TINY, messages=QUESTION, temperature=3)
    assert (bad.value.param, bad.value.code, bad.value.type) == (
        "temperature",
        "invalid_value",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.AuthenticationError) as stranger:
        server.client("smedje_not-a-key-at-all").models.list()
    assert stranger.value.code == "invalid_api_key"


def test_a_prompt_beyond_the_context_is_refused(server: Server) -> None:
    """The message names the context length, as OpenAI's does, and the code is OpenAI's."""
    with pytest.raises(openai.BadRequestError) as long:
        server.client().chat.completions.create(model=TINY, messages=[{"role": "user", "content": "x" * 600}])
    assert long.value.code == "context_length_exceeded"
    assert "maximum context length" in long.value.message
