"""The whole life of a tuned model through the official `openai` client: only the address and the key are ours.

    pip install openai
    export OPENAI_BASE_URL=http://127.0.0.1:8321/v1 OPENAI_API_KEY=...     # `smedje serve` prints both
    python examples/openai_client.py

Upload, fine-tune, watch, read the results, chat, stream, deploy, be refused a deletion, delete.
Deployments are the one thing OpenAI has no call for: they are made with plain HTTP on the management routes (`/api`).
"""

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from itertools import takewhile
from pathlib import Path

from openai import ConflictError, OpenAI

SAMPLES = Path(__file__).resolve().parent.parent / "src" / "smedje" / "samples"
QUESTION = "My Ripple leaks milk at the bottom. What should I do?"

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8321/v1").rstrip("/")
API_KEY = os.environ.get("OPENAI_API_KEY", "")


def upload(client: OpenAI, path: Path) -> str:
    """Upload one chat file and wait until the server has checked it. Returns the file's id."""
    file = client.files.create(file=path, purpose="fine-tune")
    file = client.files.wait_for_processing(file.id)
    if file.status != "processed":
        sys.exit(f"{path} was refused: {file.status_details}")
    print(f"uploaded {path.name}: {file.id}, {file.bytes:,} bytes")
    return file.id


def start(client: OpenAI, *, model: str, epochs: int, train: Path, validation: Path) -> str:
    """Create a supervised job. Returns its id."""
    job = client.fine_tuning.jobs.create(
        model=model,
        training_file=upload(client, train),
        validation_file=upload(client, validation),
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs}}},
        suffix="ottervale",
        seed=7,
        metadata={"team": "support", "purpose": "example"},
    )
    print(f"created {job.id}: {job.status}")
    return job.id


def start_old_form(client: OpenAI, *, model: str, training_file: str) -> None:
    """The same request as code from before `method` writes it; queued behind the first job, so cancelled here."""
    job = client.fine_tuning.jobs.create(
        model=model, training_file=training_file, hyperparameters={"n_epochs": 1, "batch_size": 4}
    )
    print(f"created {job.id} with top-level hyperparameters {job.hyperparameters.to_dict()}: {job.status}")
    print(f"{job.id} {client.fine_tuning.jobs.cancel(job.id).status}")


def watch(client: OpenAI, job_id: str) -> str:
    """Print the job's events as they come, until it ends. Returns the tuned model's name."""
    seen: set[str] = set()
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)  # before the events, so that none of the last ones is missed
        newest_first = client.fine_tuning.jobs.list_events(job_id, limit=50)
        for event in reversed(list(takewhile(lambda event: event.id not in seen, newest_first))):
            seen.add(event.id)
            print(f"  {time.strftime('%H:%M:%S', time.localtime(event.created_at))} {event.level:5} {event.message}")
        if job.status in ("succeeded", "failed", "cancelled"):
            break
        time.sleep(2)
    if job.fine_tuned_model is None:
        sys.exit(f"{job_id} {job.status}: {job.error.message if job.error else 'no reason given'}")
    print(f"{job_id} {job.status}: {job.trained_tokens or 0:,} tokens trained, model {job.fine_tuned_model}")
    return job.fine_tuned_model


def show_results(client: OpenAI, job_id: str) -> None:
    """List the checkpoints and print the head of the table of losses."""
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job_id):
        loss = checkpoint.metrics.full_valid_loss
        print(f"checkpoint at step {checkpoint.step_number}: {checkpoint.fine_tuned_model_checkpoint}, loss {loss}")
    for file_id in client.fine_tuning.jobs.retrieve(job_id).result_files:
        print(f"{file_id}:")
        for line in client.files.content(file_id).text.splitlines()[:5]:
            print(f"  {line}")


def ask(client: OpenAI, model: str, system: str) -> None:
    """One plain answer."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": system}, {"role": "user", "content": QUESTION}],
        max_completion_tokens=100,
        temperature=0,
    )
    print(f"{model}: {answer.choices[0].message.content}")


def ask_streaming(client: OpenAI, model: str, system: str) -> None:
    """The same answer token by token; the last chunk carries the usage and no choice."""
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": system}, {"role": "user", "content": QUESTION}],
        max_completion_tokens=100,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    print(f"{model}, streaming: ", end="")
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        if chunk.usage:
            print(f"\n  {chunk.usage.prompt_tokens} tokens in, {chunk.usage.completion_tokens} out")


def manage(method: str, path: str, body: dict[str, str] | None = None) -> None:
    """One call to a management route: plain HTTP, same key."""
    request = urllib.request.Request(
        BASE_URL.removesuffix("/v1") + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request) as response:
            print(f"{method} {path}: {response.status}")
    except urllib.error.HTTPError as refusal:
        sys.exit(f"{method} {path}: {refusal.code} {refusal.read().decode()}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune, use, deploy and delete a model with the openai client.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="base model (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train", type=Path, default=SAMPLES / "support_train.jsonl")
    parser.add_argument("--validation", type=Path, default=SAMPLES / "support_heldout.jsonl")
    options = parser.parse_args()
    if not API_KEY:
        parser.error("set OPENAI_API_KEY to a key of your server")
    with options.train.open(encoding="utf-8") as lines:
        system = json.loads(lines.readline())["messages"][0]["content"]

    client = OpenAI(base_url=BASE_URL, api_key=API_KEY)

    ask(client, options.model, system)
    job_id = start(
        client, model=options.model, epochs=options.epochs, train=options.train, validation=options.validation
    )
    start_old_form(client, model=options.model, training_file=client.fine_tuning.jobs.retrieve(job_id).training_file)
    tuned = watch(client, job_id)
    show_results(client, job_id)
    ask(client, tuned, system)
    ask_streaming(client, tuned, system)

    manage("POST", "/api/deployments", {"name": "ottervale-support", "model": tuned})
    ask(client, "ottervale-support", system)
    try:
        client.models.delete(tuned)
    except ConflictError as refusal:
        print(f"not deleted while deployed: {refusal.message}")
    else:
        sys.exit(f"{tuned} was deleted although it is deployed")
    manage("DELETE", "/api/deployments/ottervale-support")
    print(f"deleted {client.models.delete(tuned).id}")


if __name__ == "__main__":
    main()
