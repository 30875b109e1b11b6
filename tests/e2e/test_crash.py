"""kill -9 of the worker, of the server, and of both: jobs finish without help, with the very same adapter."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.server_process import ServerProcess, events, finished, server_home, steps, wait_for

TERMINAL = ("The job has successfully completed", "The job failed", "cancelled")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose leases end after two seconds, so that a restart takes over quickly."""
    temporary = tmp_path_factory.mktemp("temporary")
    settings = {"SMEDJE_LEASE_SECONDS": "2", "TMPDIR": str(temporary)}
    server = ServerProcess(server_home(tmp_path_factory.mktemp("crash")), settings)
    server.start()
    yield server
    server.stop()
    # torch keeps one folder for all processes of a user.
    assert not [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]


@pytest.fixture(scope="module")
def straight(server: ServerProcess) -> bytes:
    """The adapter of a job that nobody disturbs."""
    with server.client() as client:
        job = finished(client, server.submit(client).id)
        assert job.status == "succeeded", job.error
        return server.adapter(job.id)


@pytest.mark.slow
def test_killed_worker(server: ServerProcess, straight: bytes) -> None:
    """kill -9 the worker in mid-epoch: a new run continues, the steps are each reported once, the bytes are equal, and
    what was half written is gone."""
    unfinished = server.home / "objects" / ".staging" / "of-nobody#1"
    with server.client() as client:
        job = server.submit(client)
        wait_for(lambda: max(steps(client, job.id), default=0) >= 5, what="step 5")
        unfinished.write_bytes(b"half a checkpoint")
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        done = finished(client, job.id)
        assert not unfinished.exists()
        assert done.status == "succeeded", done.error
        assert steps(client, job.id) == list(range(41))
        assert any("stopped unexpectedly" in e.message for e in events(client, job.id))
    assert server.adapter(job.id) == straight


@pytest.mark.slow
def test_killed_server_finds_its_worker_again(server: ServerProcess, straight: bytes) -> None:
    """kill -9 the server alone: the worker goes on, the restarted server adopts it and closes the job once."""
    with server.client() as client:
        job = server.submit(client)
        wait_for(lambda: max(steps(client, job.id), default=0) >= 2, what="step 2")
        workers = server.workers()
    server.kill()
    server.start()
    with server.client() as client:
        done = finished(client, job.id)
        said = events(client, job.id)
        assert done.status == "succeeded", done.error
        assert steps(client, job.id) == list(range(41))
        assert not any("stopped unexpectedly" in e.message for e in said), f"worker {workers} was not adopted"
        assert sum(e.message.startswith(TERMINAL) for e in said) == 1
    assert server.adapter(job.id) == straight


@pytest.mark.slow
def test_killed_server_and_worker(server: ServerProcess, straight: bytes) -> None:
    """kill -9 both: after the restart a new run continues from the saved state."""
    with server.client() as client:
        job = server.submit(client)
        wait_for(lambda: max(steps(client, job.id), default=0) >= 5, what="step 5")
    server.kill()
    for worker in server.workers():
        os.kill(worker, signal.SIGKILL)
    server.start()
    with server.client() as client:
        done = finished(client, job.id)
        assert done.status == "succeeded", done.error
        assert steps(client, job.id) == list(range(41))
        assert sum(e.message.startswith(TERMINAL) for e in events(client, job.id)) == 1
    assert server.adapter(job.id) == straight


@pytest.mark.slow
def test_pause_and_resume(server: ServerProcess, straight: bytes) -> None:
    """A paused job keeps its state and gives its slot away; resumed, it ends with the same bytes."""
    with server.client() as client:
        job = server.submit(client)
        wait_for(lambda: max(steps(client, job.id), default=0) >= 2, what="step 2")
        assert client.fine_tuning.jobs.pause(job.id).status == "paused"
        wait_for(lambda: not server.workers(), what="the worker's end")
        assert client.fine_tuning.jobs.retrieve(job.id).status == "paused"
        assert client.fine_tuning.jobs.resume(job.id).status == "queued"
        done = finished(client, job.id)
        assert done.status == "succeeded", done.error
        assert steps(client, job.id) == list(range(41))
    assert server.adapter(job.id) == straight


@pytest.mark.slow
def test_second_job_queues_and_cancel_frees_the_slot(server: ServerProcess) -> None:
    """One slot: the second job waits as queued; cancelling the first ends its worker and lets the second run."""
    with server.client() as client:
        first = server.submit(client)
        wait_for(lambda: client.fine_tuning.jobs.retrieve(first.id).status == "running", what="the first job")
        second = server.submit(client)
        wait_for(lambda: client.fine_tuning.jobs.retrieve(second.id).status == "queued", what="the queue")
        assert client.fine_tuning.jobs.retrieve(first.id).status == "running"
        assert len(server.workers()) <= 1
        assert client.fine_tuning.jobs.cancel(first.id).status == "cancelled"
        assert finished(client, second.id).status == "succeeded"
        assert client.fine_tuning.jobs.retrieve(first.id).status == "cancelled"


@pytest.mark.slow
def test_worker_that_always_dies_fails_the_job(server: ServerProcess, tmp_path: Path) -> None:
    """A base model that kills its worker before any progress ends the job with an error, not in a crash loop."""
    weights = server.home / "models" / "tiny-llama" / "model.safetensors"
    kept = weights.read_bytes()
    with server.client() as client:
        try:
            weights.write_bytes(kept[:100])
            done = finished(client, server.submit(client).id)
        finally:
            weights.write_bytes(kept)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code
    assert "model.safetensors" in done.error.message
