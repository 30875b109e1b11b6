"""`smedje jobs export-metrics`: a job's figures as a record that TensorBoard, MLflow or Weights & Biases reads."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smedje.cli.output import JsonFlag, print_json, say

if TYPE_CHECKING:
    from smedje.cli.client import Client

JOBS = "/v1/fine_tuning/jobs"
# More than any job has.
MOST_EVENTS = 10_000_000


class Tracker(StrEnum):
    """Who reads what is written."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"
    WANDB = "wandb"


def export_metrics(
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID", help="The job's id: ftjob-...")],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; other runs in it stay.")],
    to: Annotated[Tracker, typer.Option("--to", help="In whose form.")] = Tracker.TENSORBOARD,
    project: Annotated[str, typer.Option("--project", help="Of wandb and mlflow: where runs are listed.")] = "smedje",
    as_json: JsonFlag = False,
) -> None:
    """Write every figure of every step for TensorBoard, MLflow or Weights & Biases (offline without WANDB_API_KEY)."""
    from smedje.cli.client import open_client, segment
    from smedje.services.trackers import Curve, Order, write_apart

    with open_client() as client:
        job: dict[str, Any] = client.get(f"{JOBS}/{segment(job_id)}")
        rows = _rows(client, f"{JOBS}/{segment(job_id)}/events")
    curve = Curve(
        job_id=job["id"],
        name=job.get("fine_tuned_model") or job["id"],
        rows=rows,
        config=_config(job),
        project=project,
        tags=("smedje", job["model"]),
    )
    key = os.environ.get("WANDB_API_KEY")
    order = Order(kind=to.value, folder=str(out.resolve()), curve=curve)
    place = write_apart(order, secrets={"WANDB_API_KEY": key} if key else None)
    if as_json:
        print_json({"object": "metrics_export", "job_id": job["id"], "to": to.value, "steps": len(rows), "path": place})
        return
    say(f"{len(rows)} steps written: {place}")


def _config(job: dict[str, Any]) -> dict[str, Any]:
    resolved = (job.get("smedje") or {}).get("resolved") or {}
    return {"model": job["model"], "method": job["method"]["type"], "seed": job["seed"], **resolved}


def _rows(client: "Client", path: str) -> list[dict[str, float]]:
    """The figures of all steps, by step."""
    events = client.page(path, limit=MOST_EVENTS)["data"]
    rows = [event["data"] for event in events if event["type"] == "metrics" and event["data"]]
    return sorted(rows, key=lambda row: row["step"])
