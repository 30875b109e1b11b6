"""`smedje serve` as a real process on a free loopback port, which a test may kill and start again on the same state."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from smedje.domain.runs import WORKER_NAME
from smedje.modeling.folder import model_folder, write_manifest
from smedje.modeling.tiny_random import write_tiny_llama
from smedje.objects.store import Objects, open_objects
from tests.training_runs import chat_rows

KEY = "test-owner-key-of-some-length"
MODEL = "tiny-llama"
T = TypeVar("T")


@dataclass
class ServerProcess:
    """One state folder and the server process on it. `settings`: further SMEDJE_ variables."""

    home: Path
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    url: str = ""

    def start(self) -> None:
        """Start the server and wait for the line that says where it is."""
        env = {**os.environ, "SMEDJE_HOME": str(self.home), "SMEDJE_BOOTSTRAP_API_KEY": KEY, "SMEDJE_THREADS": "1"}
        log = self.home / "server.log"
        mark = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "smedje.cli", "serve", "--port", "0"],
                env={**env, **self.settings},
                stdout=output,
                stderr=output,
            )

        def ready() -> re.Match[bytes] | None:
            told = log.read_bytes()[mark:]
            assert self.process is not None
            assert self.process.poll() is None, told.decode(errors="replace")[-2000:]
            return re.search(rb"ready at (http://\S+)", told)

        self.url = wait_for(ready, what="the server")[1].decode()

    def kill(self) -> None:
        """kill -9 the server alone: no goodbye, its workers go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End the server as Ctrl-C does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=60)

    @contextmanager
    def client(self) -> Iterator[OpenAI]:
        """The official client for this server."""
        with OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0) as client:
            yield client

    @property
    def objects(self) -> Objects:
        """The server's object storage."""
        return open_objects((self.home / "objects").as_uri())

    def workers(self) -> list[int]:
        """Process numbers of training workers that belong to this state folder, however they were started."""
        return [
            pid
            for pid, name, words in self._processes()
            if "smedje.training.worker" in words or ("smedje.training.warm" in words and name == WORKER_NAME)
        ]

    def waiting(self) -> list[int]:
        """Process numbers of processes that hold a base model for the next job."""
        return [
            pid
            for pid, name, words in self._processes()
            if "smedje.training.warm" in words and name != WORKER_NAME and os.getpgid(pid) == pid
        ]

    def _processes(self) -> Iterator[tuple[int, str, str]]:
        """Number, name and command line of processes that name this state folder."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                name, words = (entry / "comm").read_text().strip(), (entry / "cmdline").read_text()
            except OSError:
                continue
            if str(self.home) in words:
                yield int(entry.name), name, words

    def submit(self, client: OpenAI, **changes: object) -> FineTuningJob:
        """Upload rows and create a job of forty steps with seed 7."""
        file = client.files.create(file=("rows.jsonl", chat_rows(40)), purpose="fine-tune")
        body = {
            "model": MODEL,
            "training_file": file.id,
            "seed": 7,
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5, "batch_size": 4}}},
            "extra_body": {"smedje": {"lora_rank": 4, "lora_dropout": 0.1, "max_steps": 40}},
        }
        return client.fine_tuning.jobs.create(**{**body, **changes})  # type: ignore[arg-type]

    def adapter(self, job_id: str) -> bytes:
        """The final adapter's bytes, found through the run folders of the job."""
        keys = [i.key for i in self.objects.list("runs") if i.key.endswith("adapter_model.safetensors")]
        mine = [k for k in keys if f'"job_id": "{job_id}"' in self._spec(k)]
        assert mine, f"no checkpoint of {job_id}"
        return self.objects.get(max(mine, key=lambda key: key.split("/checkpoints/")[1]))

    def _spec(self, key: str) -> str:
        return self.objects.get(f"{key.split('/checkpoints/')[0]}/spec.json").decode()


def server_home(root: Path) -> Path:
    """A state folder with the tiny model installed."""
    home = root / "home"
    folder = model_folder(home, MODEL)
    write_tiny_llama(folder)
    write_manifest(folder, name=MODEL, source="generated")
    return home


def wait_for(look: Callable[[], T | None], *, what: str, seconds: float = 120.0) -> T:
    """Look again and again until there is something; fails with `what` when there is nothing in time."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)
    return found


def finished(client: OpenAI, job_id: str, *, seconds: float = 120.0) -> FineTuningJob:
    """The job once it has ended."""

    def look() -> FineTuningJob | None:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return wait_for(look, what=f"the end of {job_id}", seconds=seconds)


def events(client: OpenAI, job_id: str) -> list[FineTuningJobEvent]:
    """All events, oldest first."""
    return list(client.fine_tuning.jobs.list_events(job_id, limit=100))[::-1]


def steps(client: OpenAI, job_id: str) -> list[int]:
    """The steps that have been reported, in the order of their events."""
    return [int(e.data["step"]) for e in events(client, job_id) if e.type == "metrics" and isinstance(e.data, dict)]


def engines(server: ServerProcess) -> list[psutil.Process]:
    """The engine processes on this state folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "smedje.serving.worker" in words and any(word.startswith(str(server.home)) for word in words):
            found.append(process)
    return found
