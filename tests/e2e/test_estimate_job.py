"""What the estimate says before a job and what the job then does: the same rows, the same tokens, told at its end."""

import json
from collections.abc import Iterator

import pytest
from tests.server_process import MODEL, ServerProcess, events, finished, server_home


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A running server with the tiny model."""
    server = ServerProcess(server_home(tmp_path_factory.mktemp("estimate")))
    server.start()
    yield server
    server.stop()


def labelled_chats(count: int) -> bytes:
    """Chats whose answers are labels, a fifth of them the rare one, with lengths of their own."""
    rows = (
        {
            "messages": [
                {"role": "user", "content": f"text {n} " + "word " * (n % 7)},
                {"role": "assistant", "content": "rare" if n % 5 == 0 else "usual"},
            ]
        }
        for n in range(count)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.slow
def test_the_estimate_counts_what_the_job_trains(server: ServerProcess) -> None:
    """Rows, held-out rows and trained tokens are those of the job; its story ends with guess and fact side by side."""
    with server.client() as client:
        file = client.files.create(file=("labels.jsonl", labelled_chats(40)), purpose="fine-tune")
        body = {
            "model": MODEL,
            "training_file": file.id,
            "seed": 5,
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
        }
        root = str(client.base_url).removesuffix("/v1/")
        guess = client.post(f"{root}/api/fine_tuning/estimate", body=body, cast_to=dict[str, object])
        assert (guess["rows"], guess["validation_rows"], guess["split_by_label"]) == (32, 8, True)
        assert (guess["admitted"], guess["quotas"]) == (True, [])
        job = client.post("/fine_tuning/jobs", body=body, cast_to=dict[str, object])
        done = finished(client, str(job["id"]))
        assert done.status == "succeeded", done.error
        assert done.trained_tokens == guess["trained_tokens"]
        story = events(client, done.id)
        resolved = next(e.data for e in story if isinstance(e.data, dict) and "training_examples" in e.data)
        assert (resolved["training_examples"], resolved["validation_examples"]) == (32, 8)
        told = next(e for e in story if e.message.startswith("Predicted "))
        assert isinstance(told.data, dict)
        assert told.data["trained_tokens"] == guess["trained_tokens"]
        assert (
            f"predicted {guess['trained_tokens']:,} training tokens, trained {done.trained_tokens:,}." in told.message
        )
        found = client.get(f"{root}/api/fine_tuning/jobs/{done.id}/comparison", cast_to=dict[str, object])
        assert found["summary"] == told.message
        assert found["time_ratio"] == told.data["time_ratio"]
        print(told.message)
