"""`smedje jobs`: create, follow and steer fine-tuning jobs.

Knows the fine-tuning API's paths and the request's form; knows nothing of what the options do.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smedje.cli import exits
from smedje.cli.estimate import compare, show_estimate
from smedje.cli.export_metrics import export_metrics
from smedje.cli.files import file_for
from smedje.cli.output import (
    JsonFlag,
    note,
    print_fields,
    print_json,
    print_json_line,
    print_table,
    say,
    when,
)
from smedje.cli.watch import metrics_line, metrics_of, watch

if TYPE_CHECKING:
    from smedje.cli.client import Client

app = typer.Typer(help="Create, follow and steer fine-tuning jobs.", rich_markup_mode=None, no_args_is_help=True)

app.command(name="compare")(compare)
app.command(name="export-metrics")(export_metrics)

JOBS = "/v1/fine_tuning/jobs"
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="The job's id: ftjob-...")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]


class Method(StrEnum):
    """How a job trains."""

    SUPERVISED = "supervised"
    DPO = "dpo"
    CLASSIFICATION = "classification"


@dataclass(frozen=True, kw_only=True)
class JobForm:
    """What the command line says about a job to create; see `create` for the meanings."""

    model: str
    method: Method
    beta: str
    suffix: str | None
    seed: int | None
    epochs: str
    batch_size: str
    learning_rate_multiplier: str
    options: Sequence[str]
    metadata: Sequence[str]

    def body(self, training_file: str, validation_file: str | None) -> dict[str, Any]:
        """The request body, with what was not said left out. Raises BadParameter for a value that is no number."""
        hyperparameters = {
            "n_epochs": _number("--epochs", self.epochs),
            "batch_size": _number("--batch-size", self.batch_size),
            "learning_rate_multiplier": _number("--learning-rate-multiplier", self.learning_rate_multiplier),
        }
        if self.method is Method.DPO:
            hyperparameters["beta"] = _number("--beta", self.beta)
        elif self.beta != "auto":
            raise typer.BadParameter("It belongs to --method dpo.", param_hint="--beta")
        body = {
            "model": self.model,
            "training_file": training_file,
            "validation_file": validation_file,
            "suffix": self.suffix,
            "seed": self.seed,
            "method": {"type": self.method.value, self.method.value: {"hyperparameters": hyperparameters}},
            "metadata": _pairs("--metadata", self.metadata) or None,
            "smedje": {name: _value(text) for name, text in _pairs("--option", self.options).items()} or None,
        }
        return {name: value for name, value in body.items() if value is not None}


@app.command()
def create(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Training data: a path, uploaded first, or a file id.")],
    model: Annotated[str, typer.Option("--model", help="Base model, fine-tuned model or checkpoint to start from.")],
    validation_file: Annotated[
        str | None, typer.Option("--validation-file", help="Held-out data: a path or a file id.")
    ] = None,
    method: Annotated[Method, typer.Option("--method", help="How to train.")] = Method.SUPERVISED,
    beta: Annotated[str, typer.Option("--beta", help="Of dpo: how close to stay to the start, or auto.")] = "auto",
    suffix: Annotated[str | None, typer.Option("--suffix", help="Part of the fine-tuned model's name.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same result.")] = None,
    epochs: Annotated[str, typer.Option("--epochs", help="Passes over the data, or auto.")] = "auto",
    batch_size: Annotated[str, typer.Option("--batch-size", help="Examples per step, or auto.")] = "auto",
    learning_rate_multiplier: Annotated[
        str, typer.Option("--learning-rate-multiplier", help="Times the model's own rate, or auto.")
    ] = "auto",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="A knob of the `smedje` field; repeatable."),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="KEY=VALUE", help="A label of yours; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the estimate, create no job.")] = False,
    follow: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Create a fine-tuning job. With --watch the exit code is 0 only when it succeeds."""
    from smedje.cli.client import open_client

    form = JobForm(
        model=model,
        method=method,
        beta=beta,
        suffix=suffix,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate_multiplier=learning_rate_multiplier,
        options=option or (),
        metadata=metadata or (),
    )
    form.body("", None)  # a slip in the options is told before anything is uploaded
    with open_client() as client:
        body = form.body(file_for(client, file), file_for(client, validation_file) if validation_file else None)
        if dry_run:
            show_estimate(client.post("/api/fine_tuning/estimate", body), as_json=as_json)
            return
        job = client.post(JOBS, body)
        if follow:
            _watch(client, str(job["id"]), as_json=as_json)
    _show(job, as_json=as_json)
    if not as_json:
        say(f"next: smedje jobs watch {job['id']}")


@app.command("list")
def list_jobs(limit: Limit = 20, as_json: JsonFlag = False) -> None:
    """List jobs, newest first."""
    from smedje.cli.client import open_client

    with open_client() as client:
        page = client.page(JOBS, limit=limit)
    if as_json:
        print_json(page)
        return
    rows = [(j["id"], j["status"], j["model"], when(j["created_at"]), j["fine_tuned_model"]) for j in page["data"]]
    print_table(
        ("ID", "STATUS", "MODEL", "CREATED", "FINE-TUNED MODEL"), rows, empty="No jobs. Next: smedje jobs create"
    )


@app.command()
def get(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Show one job."""
    from smedje.cli.client import open_client

    with open_client() as client:
        _show(client.get(_path(job_id)), as_json=as_json)


@app.command()
def cancel(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Stop a job for good; its checkpoints stay."""
    _steer(job_id, "cancel", as_json=as_json)


@app.command()
def pause(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Stop a job so that it can go on later, exactly where it was."""
    _steer(job_id, "pause", as_json=as_json)


@app.command()
def resume(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Let a paused job go on."""
    _steer(job_id, "resume", as_json=as_json)


@app.command()
def events(job_id: JobId, limit: Limit = 100, as_json: JsonFlag = False) -> None:
    """Print a job's latest events, oldest first. With --json: JSON lines."""
    from smedje.cli.client import open_client

    with open_client() as client:
        page = client.page(f"{_path(job_id)}/events", limit=limit)
    for event in reversed(page["data"]):
        data = metrics_of(event)
        if as_json:
            print_json_line(event)
        else:
            say(f"{when(event['created_at'])} {event['message'] if data is None else metrics_line(data)}")


@app.command()
def checkpoints(job_id: JobId, limit: Limit = 20, as_json: JsonFlag = False) -> None:
    """List a job's checkpoints, newest first."""
    from smedje.cli.client import open_client

    with open_client() as client:
        page = client.page(f"{_path(job_id)}/checkpoints", limit=limit)
    if as_json:
        print_json(page)
        return
    rows = [(c["step_number"], _loss(c), c["fine_tuned_model_checkpoint"], when(c["created_at"])) for c in page["data"]]
    print_table(("STEP", "HELD-OUT LOSS", "MODEL", "CREATED"), rows, empty="No checkpoints yet.")


@app.command("watch")
def watch_job(job_id: JobId, as_json: JsonFlag = False) -> None:
    """Follow a job to its end. Exit code 0 only when it succeeds. With --json: JSON lines, the job last."""
    from smedje.cli.client import open_client

    with open_client() as client:
        _watch(client, job_id, as_json=as_json)


def _watch(client: "Client", job_id: str, *, as_json: bool) -> None:
    try:
        job = watch(client, job_id, as_json=as_json)
    except KeyboardInterrupt:
        note(f"the job goes on; follow it with: smedje jobs watch {job_id}; stop it with: smedje jobs cancel {job_id}")
        raise
    if not as_json:
        for line in _ending(job):
            say(line)
    raise typer.Exit(exits.OK if job["status"] == "succeeded" else exits.FAILED)


def _ending(job: Mapping[str, Any]) -> list[str]:
    match job["status"]:
        case "succeeded":
            name = job["fine_tuned_model"]
            return [f"fine-tuned model: {name}", f"next: smedje deployments create NAME --model {name}"]
        case "failed":
            error = job.get("error") or {}
            return [f"failed: {error.get('message') or 'no reason given'} ({error.get('code')})"]
        case "paused":
            return [f"paused; let it go on with: smedje jobs resume {job['id']}"]
        case status:
            return [str(status)]


def _steer(job_id: str, verb: str, *, as_json: bool) -> None:
    from smedje.cli.client import open_client

    with open_client() as client:
        _show(client.post(f"{_path(job_id)}/{verb}"), as_json=as_json)


def _path(job_id: str) -> str:
    from smedje.cli.client import segment

    return f"{JOBS}/{segment(job_id)}"


def _show(job: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    error = job.get("error") or {}
    numbers = job.get("hyperparameters") or {}
    print_fields(
        {
            "id": job["id"],
            "status": job["status"],
            "model": job["model"],
            "training file": job["training_file"],
            "validation file": job.get("validation_file"),
            "hyperparameters": ", ".join(f"{name} {value}" for name, value in numbers.items()) or None,
            "seed": job.get("seed"),
            "created": when(job["created_at"]),
            "finished": when(job.get("finished_at")),
            "trained tokens": job.get("trained_tokens"),
            "fine-tuned model": job.get("fine_tuned_model"),
            "error": error.get("message"),
        }
    )


def _loss(checkpoint: Mapping[str, Any]) -> str | None:
    loss = checkpoint["metrics"].get("full_valid_loss")
    return None if loss is None else f"{loss:.4f}"


def _number(option: str, text: str) -> int | float | str:
    if text == "auto":
        return text
    try:
        number = float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor auto.", param_hint=option) from None
    return int(number) if number.is_integer() else number


def _pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, found, value = word.partition("=")
        if not (name and found):
            raise typer.BadParameter(f"{word!r} does not look like KEY=VALUE.", param_hint=option)
        pairs[name] = value
    return pairs


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
