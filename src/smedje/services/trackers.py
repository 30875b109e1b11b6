"""A job's figures as another program's record of a run: TensorBoard, MLflow (a folder) or Weights & Biases.

Knows rows of figures and the three libraries, each imported only when it is asked for. As a program it writes one curve
from JSON on its standard input, in a process of its own. Knows no database and no server.
"""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from smedje.errors import InternalError, InvalidRequest, SmedjeError

Kind = Literal["tensorboard", "mlflow", "wandb"]
KINDS: tuple[Kind, ...] = ("tensorboard", "mlflow", "wandb")
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb"}
# What is known of a step beside its number.
NOT_FIGURES = frozenset({"step", "total_steps"})


class Curve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One job's figures. rows: a step each, `step` among their names. config: what was asked and what that became.

    project, tags, entity: of Weights & Biases; MLflow's experiment has the project's name.
    """

    job_id: str
    name: str
    rows: Sequence[Mapping[str, float]]
    config: Mapping[str, Any] = {}
    project: str = "smedje"
    entity: str | None = None
    tags: Sequence[str] = ()


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the process is told: a curve, where it goes and into which folder."""

    kind: Kind
    folder: str
    curve: Curve


def figures_of_step(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite figures of one step's event, without the step's own number."""
    numbers = {name: value for name, value in row.items() if name not in NOT_FIGURES}
    return {
        name: float(value)
        for name, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def write_curve(order: Order) -> str:
    """Write the curve; returns where it is. Raises InvalidRequest when the library is not installed."""
    folder = Path(order.folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        match order.kind:
            case "tensorboard":
                return _tensorboard(order.curve, folder)
            case "mlflow":
                return _mlflow(order.curve, folder)
            case "wandb":
                return _wandb(order.curve, folder)
    except ImportError as missing:
        raise InvalidRequest(
            f"{order.kind} needs the package {PACKAGES[order.kind]}, which is not installed ({missing.name}). "
            "Install it with: pip install 'smedje[track]'",
            code="package_missing",
            param=order.kind,
        ) from None


def _tensorboard(curve: Curve, folder: Path) -> str:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    place = folder / curve.job_id
    writer = EventFileWriter(str(place))
    for row in curve.rows:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures_of_step(row).items()]
        event = Event(step=int(row["step"]), summary=Summary(value=values))
        if "wall_time" in row:
            event.wall_time = row["wall_time"]
        writer.add_event(event)
    writer.close()
    return str(place)


def _mlflow(curve: Curve, folder: Path) -> str:
    # MLflow asks for consent to its file store, and reports its use unless told otherwise.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=folder.resolve().as_uri())
    known = client.get_experiment_by_name(curve.project)
    holder = client.create_experiment(curve.project) if known is None else known.experiment_id
    run = client.create_run(holder, run_name=curve.name, tags={"smedje.job_id": curve.job_id})
    params = [Param(name, str(value)[:500]) for name, value in curve.config.items()]
    metrics = [
        Metric(name, value, int(row.get("wall_time", 0) * 1000), int(row["step"]))
        for row in curve.rows
        for name, value in figures_of_step(row).items()
        if name != "wall_time"
    ]
    client.log_batch(run.info.run_id, params=params)
    for start in range(0, len(metrics), 1000):
        client.log_batch(run.info.run_id, metrics=metrics[start : start + 1000])
    client.set_terminated(run.info.run_id)
    return f"{folder.resolve()}, run {run.info.run_id}"


def _wandb(curve: Curve, folder: Path) -> str:
    import wandb

    offline = not os.environ.get("WANDB_API_KEY")
    settings = wandb.Settings(
        mode="offline" if offline else "online",
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_disable_meta=True,
    )
    run = wandb.init(
        project=curve.project,
        entity=curve.entity,
        name=curve.name,
        id=curve.job_id,
        tags=list(curve.tags),
        config=dict(curve.config),
        dir=str(folder),
        resume="allow",
        settings=settings,
    )
    for row in curve.rows:
        run.log(figures_of_step(row), step=int(row["step"]))
    place = str(Path(run.dir).parent) if offline else str(run.url)
    run.finish()
    return place


def main() -> int:
    """Write the curve that standard input describes; where it is, or what is wrong, is said in one line."""
    try:
        order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
        print(write_curve(order))
    except SmedjeError as problem:
        print(problem.message, file=sys.stderr)
        return 1
    except Exception as problem:
        # The libraries raise errors of many kinds; the caller gets one line of it.
        print(f"{type(problem).__name__}: {problem}"[:500].replace("\n", " "), file=sys.stderr)
        return 2
    return 0


def write_apart(order: Order, *, secrets: Mapping[str, str] | None = None) -> str:
    """`write_curve` in a process of its own: the libraries start threads and processes and keep settings.

    secrets: variables for that process alone. Raises InvalidRequest when a package is missing, InternalError otherwise.
    """
    import subprocess

    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SMEDJE_", "WANDB_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-m", "smedje.services.trackers"],
        input=msgspec.json.encode(order),
        env={**kept, **(secrets or {})},
        capture_output=True,
        check=False,
        timeout=600,
    )
    said = (done.stdout if done.returncode == 0 else done.stderr).decode("utf-8", "replace").strip().splitlines()
    if done.returncode == 0:
        return said[-1] if said else order.folder
    kind = InvalidRequest if done.returncode == 1 else InternalError
    raise kind(f"{order.kind}: {said[-1] if said else 'it said nothing'}", code="export_failed")


if __name__ == "__main__":
    raise SystemExit(main())
