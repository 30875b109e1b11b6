"""A job's figures in the files of TensorBoard, MLflow and Weights & Biases, read back from what the libraries wrote."""

import csv
import io
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError
from tests.server_process import KEY, ServerProcess, events, finished, server_home, wait_for

from smedje.services.trackers import Curve, Order, figures_of_step, write_apart

pytestmark = pytest.mark.slow
Figures = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A running server with the tiny model."""
    server = ServerProcess(server_home(tmp_path_factory.mktemp("metrics")))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def job(server: ServerProcess) -> str:
    """A job of six steps that asks for its figures at Weights & Biases."""
    wandb = {"project": "bots", "name": "first", "tags": ["a", "b"]}
    with server.client() as client:
        made: Any = server.submit(
            client, integrations=[{"type": "wandb", "wandb": wandb}], extra_body={"smedje": {"max_steps": 6}}
        )
        assert [one.model_dump(exclude_none=True) for one in made.integrations] == [{"type": "wandb", "wandb": wandb}]
        done = finished(client, made.id)
        assert done.status == "succeeded", done.error
        return str(done.id)


def rows(server: ServerProcess, job: str) -> Figures:
    """The figures of the results file, by name and step."""
    with server.client() as client:
        done = client.fine_tuning.jobs.retrieve(job)
        text = client.files.content(done.result_files[0]).text
    found: Figures = {}
    for row in csv.DictReader(io.StringIO(text)):
        for name, value in row.items():
            if name != "step" and value:
                found.setdefault(name, {})[int(row["step"])] = float(value)
    return found


def exported(server: ServerProcess, job: str, to: str, out: Path, *more: str) -> dict[str, Any]:
    """What the command says that it wrote."""
    command = [sys.executable, "-m", "smedje.cli", "jobs", "export-metrics", job, str(out), "--to", to, "--json", *more]
    environment = {**os.environ, "SMEDJE_HOME": str(server.home), "SMEDJE_BASE_URL": server.url, "SMEDJE_API_KEY": KEY}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["steps"] == 7
    return told


def same(found: Figures, wanted: Figures, *, rel: float) -> None:
    """Every figure of every step of the results file is there."""
    assert wanted.keys() <= found.keys()
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, rel=rel), name


def test_every_figure_is_an_event_and_a_column(server: ServerProcess, job: str) -> None:
    """Loss, accuracy, rate, gradient norm, three speeds, memory and what is left: in each step's event and CSV row."""
    found = rows(server, job)
    with server.client() as client:
        told = [e.data for e in events(client, job) if e.type == "metrics" and isinstance(e.data, dict)]
    for name in (
        "train_loss",
        "train_mean_token_accuracy",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "labelled_tokens_per_second",
        "computed_tokens_per_second",
        "memory_bytes",
        "eta_seconds",
    ):
        assert found[name] == {int(str(data["step"])): data[name] for data in told if name in data}, name
        assert found[name].keys() == set(range(1, 7)), name


def test_tensorboard_reads_the_figures(server: ServerProcess, job: str, tmp_path: Path) -> None:
    """Event file scalars equal the results file's, to fp32."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = exported(server, job, "tensorboard", tmp_path)["path"]
    read = EventAccumulator(place, size_guidance={"scalars": 0}).Reload()
    found = {name: {one.step: one.value for one in read.Scalars(name)} for name in read.Tags()["scalars"]}
    same(found, rows(server, job), rel=1e-6)


def test_mlflow_reads_the_figures(server: ServerProcess, job: str, tmp_path: Path) -> None:
    """The run's metrics equal the results file's, and its parameters are the job's resolved numbers."""
    exported(server, job, "mlflow", tmp_path, "--project", "bells")
    script = (
        "import json, sys\n"
        "from mlflow.tracking import MlflowClient\n"
        "c = MlflowClient(tracking_uri=sys.argv[1])\n"
        "run = c.search_runs([c.get_experiment_by_name('bells').experiment_id])[0]\n"
        "found = {n: {m.step: m.value for m in c.get_metric_history(run.info.run_id, n)} for n in run.data.metrics}\n"
        "print(json.dumps([found, run.data.params]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path.as_uri()],
        env={**os.environ, "MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told, params = json.loads(done.stdout.splitlines()[-1])
    found = {name: {int(step): value for step, value in values.items()} for name, values in told.items()}
    same(found, rows(server, job), rel=1e-12)
    assert params["total_steps"] == "6"


def test_a_jobs_integration_is_written_offline_without_a_key(server: ServerProcess, job: str) -> None:
    """An event names the offline run; its history has the results file's figures, project, name and tags as asked."""
    with server.client() as client:
        said = wait_for(
            lambda: [e.message for e in events(client, job) if "Weights & Biases" in e.message],
            what="the integration's event",
        )
    place = re.search(r"Biases: (\S+)$", said[0])
    assert place is not None, said
    (file,) = Path(place[1]).rglob("*.wandb")
    found: Figures = {}
    facts: dict[str, Any] = {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "run":
            facts = {"project": record.run.project, "name": record.run.display_name, "tags": list(record.run.tags)}
        if record.WhichOneof("record_type") == "history":
            items = {one.key or ".".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
            for name, value in items.items():
                found.setdefault(name, {})[int(items["_step"])] = value
    assert facts == {"project": "bots", "name": "first", "tags": ["a", "b"]}
    same(found, rows(server, job), rel=1e-12)


def test_wrong_integrations_are_refused_by_field(server: ServerProcess) -> None:
    """Another type, a missing project, an unknown field, a tag that is no text, six of them."""
    good: dict[str, Any] = {"type": "wandb", "wandb": {"project": "p"}}
    cases: list[tuple[list[Any], str]] = [
        ([{"type": "comet"}], "type"),
        ([{"type": "wandb", "wandb": {}}], "project"),
        ([{"type": "wandb", "wandb": {"project": "p", "api_key": "s"}}], "api_key"),
        ([{"type": "wandb", "wandb": {"project": "p", "tags": [3]}}], "tags"),
        ([good] * 6, "at most 5"),
    ]
    with server.client() as client:
        for given, says in cases:
            with pytest.raises(BadRequestError, match=says):
                server.submit(client, integrations=given)


def test_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    """Words, truth values and what is not finite are no figures; an unwritable folder is an error in words."""
    row = {"step": 3, "total_steps": 9, "train_loss": 1.5, "epoch": 1, "bad": float("nan"), "word": "x", "yes": True}
    assert figures_of_step(row) == {"train_loss": 1.5, "epoch": 1.0}
    (tmp_path / "file").write_text("")
    order = Order(kind="tensorboard", folder=str(tmp_path / "file"), curve=Curve(job_id="j", name="n", rows=[]))
    with pytest.raises(Exception, match="tensorboard"):
        write_apart(order)


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log format, 7 bytes of its own before the first block."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
