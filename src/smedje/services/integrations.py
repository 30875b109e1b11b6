"""OpenAI's `integrations` of a job: where its figures go when it has ended. Only Weights & Biases has a form there.

A job keeps what was asked and never a key: that is the server's own setting. Without one the run is written offline, to
be sent later with `wandb sync`. Knows jobs and events; the writing is trackers.py's.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smedje.domain.jobs import FineTuningJob
from smedje.errors import InvalidRequest, SmedjeError, UnsupportedField
from smedje.services.context import Context
from smedje.services.run_events import job_event
from smedje.services.trackers import Curve, Order, write_apart
from smedje.store import jobs as job_rows

MOST_INTEGRATIONS = 5
LONGEST_NAME = 128
MOST_TAGS, LONGEST_TAG = 50, 64
FIELDS = frozenset({"project", "name", "entity", "tags"})

log = logging.getLogger("smedje.integrations")


@dataclass(frozen=True, kw_only=True)
class Trackers:
    """wandb_api_key: with it runs are sent to Weights & Biases as they are written."""

    wandb_api_key: str = ""


def check_integrations(given: Sequence[Any] | None) -> tuple[dict[str, Any], ...]:
    """The integrations as they are kept. Raises UnsupportedField for another type, InvalidRequest for a wrong field."""
    if given is None:
        return ()
    if len(given) > MOST_INTEGRATIONS:
        raise _wrong(f"there are {len(given)}; at most {MOST_INTEGRATIONS} are taken", "integrations")
    return tuple(_checked(one, f"integrations[{place}]") for place, one in enumerate(given))


def write_integrations(ctx: Context, job: FineTuningJob, trackers: Trackers) -> None:
    """Write the figures of a job that has ended wherever it asked for; each is an event, also when it fails."""
    with ctx.database.transaction() as tx:
        rows = [dict(event.data or {}) for event in job_rows.list_step_events(tx, job.id)]
    for one in job.request.integrations:
        try:
            place = write_apart(_order(ctx, job, one["wandb"], rows), secrets=_secrets(trackers))
            message, level = f"Metrics written to Weights & Biases: {place}", "info"
        except (SmedjeError, OSError, TimeoutError) as problem:
            said = problem.message if isinstance(problem, SmedjeError) else type(problem).__name__
            message, level = f"The metrics were not written to Weights & Biases: {said}", "warn"
            log.warning("integration of job %s failed", job.id)
        with ctx.database.transaction() as tx:
            job_rows.insert_events(tx, [job_event(job.id, now=ctx.seconds(), message=message, level=level)])


def _secrets(trackers: Trackers) -> dict[str, str]:
    return {"WANDB_API_KEY": trackers.wandb_api_key} if trackers.wandb_api_key else {}


def _order(ctx: Context, job: FineTuningJob, asked: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Order:
    base = job.request.base_model
    curve = Curve(
        job_id=job.id,
        name=asked.get("name") or job.fine_tuned_model or job.id,
        rows=rows,
        config={"model": job.request.model, "seed": job.request.seed, **(job.resolved or {})},
        project=asked["project"],
        entity=asked.get("entity"),
        tags=tuple(asked.get("tags") or ("openai/finetune", f"openai/{base}"[:64], job.id[:64])),
    )
    return Order(kind="wandb", folder=str(ctx.home / "trackers" / "wandb"), curve=curve)


def _checked(one: Any, param: str) -> dict[str, Any]:
    kind = one.get("type") if isinstance(one, dict) else None
    if kind != "wandb":
        raise UnsupportedField(
            f"{param}.type is {str(kind)[:60]!r}; only wandb is offered here. For TensorBoard and MLflow: "
            "smedje jobs export-metrics.",
            param=f"{param}.type",
        )
    asked = one.get("wandb")
    if not isinstance(asked, dict) or one.keys() - {"type", "wandb"}:
        raise _wrong('it must look like {"type": "wandb", "wandb": {"project": ...}}', param)
    for name in asked.keys() - FIELDS:
        raise _wrong(
            f"there is no field {name[:60]!r}; known: {', '.join(sorted(FIELDS))}", f"{param}.wandb.{name[:60]}"
        )
    for name in ("project", "name", "entity"):
        value = asked.get(name)
        if name == "project" and not value:
            raise _wrong("it is required", f"{param}.wandb.project")
        if value is not None and not (
            isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()
        ):
            raise _wrong(f"it must be a text of 1 to {LONGEST_NAME} characters", f"{param}.wandb.{name}")
    tags = asked.get("tags")
    if tags is not None and not (
        isinstance(tags, list)
        and len(tags) <= MOST_TAGS
        and all(isinstance(tag, str) and 0 < len(tag) <= LONGEST_TAG for tag in tags)
    ):
        raise _wrong(f"at most {MOST_TAGS} texts of 1 to {LONGEST_TAG} characters are taken", f"{param}.wandb.tags")
    return {"type": "wandb", "wandb": {name: value for name, value in asked.items() if value is not None}}


def _wrong(what: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {what}.", code="invalid_integration", param=param)
