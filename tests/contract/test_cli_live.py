"""The command line against a live server: files, jobs, deployments, chat, models. One client among others."""

import json
import os
import pty
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.api_server import TINY, Server
from tests.cli_terminal import Terminal

from smedje.cli.client import Client
from smedje.cli.watch import follow
from smedje.domain.ids import EVENT, new_id
from smedje.domain.jobs import FineTuningJob, JobError, JobEvent, JobStatus, advance
from smedje.store import jobs as job_rows


def test_files_from_upload_to_deletion(smedje: Terminal) -> None:
    """A file comes back byte for byte, is listed with its report, and is gone once deleted."""
    path = smedje.data()
    file = smedje.json("files", "upload", path)
    assert (file["status"], file["filename"]) == ("processed", "train.jsonl")
    listed = smedje.json("files", "list")
    assert file["id"] in [one["id"] for one in listed["data"]]
    assert file["id"] in smedje("files", "list", "--purpose", "fine-tune")
    assert smedje.json("files", "report", file["id"])["verdict"] == "ok"
    assert smedje("files", "get", file["id"]).startswith("id       " + file["id"])
    target = smedje.folder / "copy.jsonl"
    assert smedje.json("files", "content", file["id"], "-o", str(target))["bytes"] == target.stat().st_size
    assert target.read_bytes() == Path(path).read_bytes()
    assert smedje.json("files", "delete", file["id"])["deleted"] is True
    assert smedje.error("files", "get", file["id"], code=3).startswith("error: ")


def test_a_file_with_errors_is_kept_and_its_report_shown(smedje: Terminal) -> None:
    """Exit code 1, the problems with their lines, and a job on it is refused before it exists."""
    path = smedje.data("bad.jsonl", b'{"messages": []}\nnot json\n')
    out = smedje("files", "upload", path, code=1)
    assert "invalid_json" in out
    assert "Not ready" in out
    before = smedje.json("jobs", "list")
    assert "smedje files report file-" in smedje.error("jobs", "create", path, "--model", TINY, code=1)
    assert smedje.json("jobs", "list") == before


def test_paths_that_do_not_exist_are_told(smedje: Terminal) -> None:
    """A path that is no file is exit code 3, and so is a file id that the server does not know."""
    assert "no file" in smedje.error("files", "upload", "nowhere.jsonl", code=3)
    assert "no file" in smedje.error("jobs", "create", "nowhere.jsonl", "--model", TINY, code=3)
    assert smedje.error("files", "report", "file-unknown", code=3)


def test_a_job_carries_what_was_asked_for(smedje: Terminal) -> None:
    """Every option reaches the server: numbers, suffix, seed, metadata, the validation file, further knobs."""
    words = ["jobs", "create", smedje.data(), "--model", TINY, "--validation-file", smedje.data("held.jsonl")]
    words += ["--suffix", "mine", "--seed", "5", "--epochs", "2", "--batch-size", "4"]
    words += ["--learning-rate-multiplier", "0.5", "--option", "lora_rank=4", "--metadata", "team=a=b"]
    job = smedje.json(*words)
    assert job["status"] == "validating_files"
    assert job["hyperparameters"] == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    assert (job["seed"], job["user_provided_suffix"], job["metadata"]) == (5, "mine", {"team": "a=b"})
    assert job["smedje"]["lora_rank"] == 4
    assert job["validation_file"].startswith("file-")
    assert job["id"] in smedje("jobs", "list")
    assert "n_epochs 2" in smedje("jobs", "get", job["id"])
    assert smedje.json("jobs", "cancel", job["id"])["status"] == "cancelled"
    assert "cancelled" in smedje.error("jobs", "cancel", job["id"], code=6)
    assert smedje.error("jobs", "resume", job["id"], code=6)


def test_an_estimate_creates_nothing(smedje: Terminal) -> None:
    """--dry-run says what a job would take, in words and as JSON, and leaves no job."""
    path = smedje.data()
    before = smedje.json("jobs", "list")
    out = smedje("jobs", "create", path, "--model", TINY, "--epochs", "2", "--dry-run")
    assert "2 epochs" in out
    assert smedje.json("jobs", "create", path, "--model", TINY, "--epochs", "2", "--dry-run")["n_epochs"] == 2
    assert smedje.json("jobs", "list") == before


def test_wrong_options_name_the_field(smedje: Terminal) -> None:
    """What the server refuses is told in its own words, with exit code 1."""
    path = smedje.data()
    assert "lora_rnk" in smedje.error("jobs", "create", path, "--model", TINY, "--option", "lora_rnk=4", code=1)
    assert "n_epochs" in smedje.error("jobs", "create", path, "--model", TINY, "--epochs", "0.5", code=1)
    assert "nope" in smedje.error("jobs", "create", path, "--model", "nope", code=1)


def new_job(smedje: Terminal) -> FineTuningJob:
    """A job that waits to be checked; no scheduler runs, so the test decides what happens to it."""
    made = smedje.json("jobs", "create", smedje.data(), "--model", TINY)
    ctx = smedje.server.ctx
    with ctx.database.transaction() as tx:
        job = job_rows.get_job(tx, smedje.server.project.id, made["id"])
    assert job is not None
    return job


def step(server: Server, job: FineTuningJob, number: int, total: int = 3) -> None:
    """Record one training step."""
    data = {"step": number, "total_steps": total, "train_loss": 2.0 / number, "tokens_per_second": 100.0}
    event = JobEvent(
        id=new_id(EVENT), job_id=job.id, created_at=100 + number, level="info", message="m", type="metrics", data=data
    )
    with server.ctx.database.transaction() as tx:
        assert job_rows.insert_step_event(tx, event, number)


def move(server: Server, job: FineTuningJob, *statuses: JobStatus, error: JobError | None = None) -> FineTuningJob:
    """Move a job through these statuses."""
    for status in statuses:
        moved = advance(job, status, now=200, error=error)
        if status is JobStatus.SUCCEEDED:
            moved = replace(moved, fine_tuned_model=f"ft:{TINY}:default::abcdefgh")
        with server.ctx.database.transaction() as tx:
            job_rows.save_job(tx, moved, was=job.status)
        job = moved
    return job


def test_following_yields_every_event_once_and_the_job_last(smedje: Terminal) -> None:
    """Events come oldest first as they appear, over several polls and pages; the settled job ends it."""
    server, job = smedje.server, new_job(smedje)
    with Client(server.url, server.key) as client:
        items = follow(client, job.id)
        assert next(items)["message"] == f"Created fine-tuning job: {job.id}"
        assert next(items)["status"] == "validating_files"
        job = move(server, job, JobStatus.QUEUED, JobStatus.RUNNING)
        for number in range(1, 151):
            step(server, job, number, 150)
        rest = [next(items) for _ in range(150)]
        assert [item["data"]["step"] for item in rest] == list(range(1, 151))
        assert next(items)["status"] == "running"
        move(server, job, JobStatus.SUCCEEDED)
        assert [item["status"] for item in items] == ["succeeded"]


@pytest.mark.parametrize(
    ("ends", "code", "text"),
    [
        ([JobStatus.SUCCEEDED], 0, f"fine-tuned model: ft:{TINY}:default::abcdefgh"),
        ([JobStatus.FAILED], 1, "failed: The data went away. (file_not_found)"),
        ([JobStatus.CANCELLED], 1, "cancelled"),
        ([JobStatus.PAUSED], 1, "paused; let it go on with: smedje jobs resume"),
    ],
)
def test_a_watched_job_ends_the_command_with_its_status(
    smedje: Terminal, ends: list[JobStatus], code: int, text: str
) -> None:
    """In a pipe: plain lines and a closing one. As JSON lines: the job last. The exit code says how it went."""
    server, job = smedje.server, new_job(smedje)
    job = move(server, job, JobStatus.QUEUED, JobStatus.RUNNING)
    step(server, job, 1)
    error = JobError(code="file_not_found", message="The data went away.", param="training_file")
    move(server, job, *ends, error=error)
    out = smedje("jobs", "watch", job.id, code=code)
    assert "step 1/3  loss 2.0000  tokens/s 100" in out
    assert text in out
    lines = [json.loads(line) for line in smedje("jobs", "watch", job.id, "--json", code=code).splitlines()]
    assert [line["object"] for line in lines[:-1]] == ["fine_tuning.job.event"] * (len(lines) - 1)
    assert lines[-1]["status"] == ends[-1].value
    assert json.loads(smedje("jobs", "events", job.id, "--limit", "1", "--json"))["type"] in ("metrics", "message")
    assert smedje.json("jobs", "checkpoints", job.id)["data"] == []


@pytest.mark.skipif(os.name == "nt", reason="terminals work otherwise on Windows")
def test_on_a_terminal_progress_is_drawn_on_standard_error_only(smedje: Terminal) -> None:
    """Standard output in a pipe stays plain; the terminal gets the bar, without colours under NO_COLOR."""
    server, job = smedje.server, new_job(smedje)
    job = move(server, job, JobStatus.QUEUED, JobStatus.RUNNING)
    step(server, job, 1)
    move(server, job, JobStatus.SUCCEEDED)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "smedje.cli", "jobs", "watch", job.id]
    env = {**os.environ, "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}
    result = subprocess.run(
        command, env=env, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, check=False, timeout=60
    )
    os.close(theirs)
    drawn = os.read(ours, 65536).decode()
    os.close(ours)
    assert result.returncode == 0
    assert "\x1b" not in result.stdout.decode()
    assert "fine-tuned model: ft:" in result.stdout.decode()
    assert "step 1/3" in drawn
    assert "\x1b[3" not in drawn


@pytest.mark.skipif(os.name == "nt", reason="signals work otherwise on Windows")
def test_ctrl_c_stops_watching_and_not_the_job(smedje: Terminal) -> None:
    """Exit code 130, a line that says how to go on watching, and the job as it was."""
    job = new_job(smedje)
    command = [sys.executable, "-m", "smedje.cli", "jobs", "watch", job.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert "Created" in watcher.stdout.readline()
        watcher.send_signal(signal.SIGINT)
        _, err = watcher.communicate(timeout=30)
    assert watcher.returncode == 130
    assert f"smedje jobs watch {job.id}" in err
    assert "Traceback" not in err
    assert smedje.json("jobs", "get", job.id)["status"] == "validating_files"


def test_deploy_ask_and_take_down(smedje: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base model under a name of one's own answers, streamed and whole; the name is free again afterwards."""
    assert smedje.json("deployments", "create", "mine", "--model", TINY)["status"] == "ready"
    assert "mine" in smedje("deployments", "list")
    assert smedje("deployments", "get", "mine").startswith("name      mine")
    words = ["chat", "hello", "--model", "mine", "--max-tokens", "4", "--temperature", "0"]
    whole = smedje.json(*words)
    assert whole["usage"]["completion_tokens"] <= 4
    assert smedje(*words) == whole["choices"][0]["message"]["content"] + "\n"
    assert smedje.error("deployments", "create", "mine", "--model", TINY, code=6)
    assert smedje.json("deployments", "delete", "mine")["deleted"] is True
    assert smedje.error("chat", "hello", "--model", "mine", code=3)


@pytest.mark.skipif(os.name == "nt", reason="terminals work otherwise on Windows")
def test_a_conversation_on_a_terminal(smedje: Terminal) -> None:
    """Questions are answered in turn, /reset begins anew, /exit ends; a question may also come through a pipe."""
    command = [sys.executable, "-m", "smedje.cli", "chat", "--model", TINY, "--max-tokens", "2"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as chat:
        os.write(ours, b"hello\n/reset\nhello again\n/exit\n")
        out, err = chat.communicate(timeout=60)
    os.close(theirs)
    os.close(ours)
    assert chat.returncode == 0, err
    assert out.count("> ") == 4
    assert "/reset begins anew" in err
    piped = subprocess.run([*command, "--json"], input="hello", capture_output=True, text=True, check=True)
    assert json.loads(piped.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_models_of_this_machine_and_of_the_server(smedje: Terminal) -> None:
    """Installed models are marked, the catalog can be searched, fine-tuned ones are looked up on the server."""
    rows = {row["name"]: row for row in smedje.json("models", "list")["data"]}
    assert rows[TINY]["installed"] is True
    assert rows["phi-3-mini-4k-instruct"]["installed"] is False
    found = [row["name"] for row in smedje.json("models", "list", "--search", "phi-3 mini")["data"]]
    assert "phi-3-mini-4k-instruct" in found
    assert not [name for name in found if "smollm" in name]
    assert [row["name"] for row in smedje.json("models", "list", "--installed")["data"]] == [TINY]
    assert smedje.json("models", "show", TINY)["installed"] is True
    assert "licence" in smedje("models", "show", "phi-3-mini-4k-instruct")
    assert smedje("models", "list", "--fine-tuned") == "No fine-tuned models. Next: smedje jobs create\n"
    assert "nope" in smedje.error("models", "show", "nope", code=3)
    assert smedje.error("models", "show", f"ft:{TINY}:default::abcdefgh", code=3)
    assert smedje.error("models", "remove", f"ft:{TINY}:default::abcdefgh", "--yes", code=3)
    assert smedje.error("models", "remove", "phi-3-mini-4k-instruct", code=3)


def test_pulling_what_is_there_is_quick_and_says_so(smedje: Terminal) -> None:
    """A pull of a local folder installs it under its new name; the second one has nothing to do."""
    folder = str(smedje.server.ctx.home / "models" / TINY)
    stages = [
        json.loads(line)["stage"] for line in smedje("models", "pull", folder, "--as", "copy", "--json").splitlines()
    ]
    assert len(stages) > 1
    again = smedje("models", "pull", folder, "--as", "copy", "--json").splitlines()
    assert [json.loads(line)["stage"] for line in again] == ["present"]
    assert smedje.json("models", "remove", "copy") == {"id": "copy", "object": "model", "deleted": True}


def test_data_is_checked_without_a_server(smedje: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems with lines and remedies, exit code 1; with a model the statistics hold its tokens."""
    monkeypatch.setenv("SMEDJE_BASE_URL", "http://127.0.0.1:9")
    assert smedje.json("data", "check", smedje.data())["verdict"] == "ok"
    found = smedje.json("data", "check", smedje.data("bad.jsonl", b"{\n"), code=1)
    assert found["problems"][0].keys() == {"line", "path", "code", "severity", "message", "remedy"}
    assert smedje.json("data", "check", smedje.data(), "--model", TINY)["statistics"]["tokens"]["examples"] == 12
    assert "not installed" in smedje.error("data", "check", smedje.data(), "--model", "phi-4-mini-instruct", code=3)


def test_a_wrong_key_and_no_server_have_codes_of_their_own(smedje: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 for a key that the server does not know, 7 for no server at all."""
    monkeypatch.setenv("SMEDJE_API_KEY", "no-key-of-this-server")
    assert smedje.error("jobs", "list", code=4)
    monkeypatch.setenv("SMEDJE_BASE_URL", "http://127.0.0.1:9")
    assert smedje.error("jobs", "list", code=7)
