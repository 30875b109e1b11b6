"""A fine-tuned model or checkpoint as files to take away: the adapter in PEFT's format and a model card.

Knows where they lie and what a card says; folding an adapter into its base model is done where the files go.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from smedje.domain.catalog import FULL_WEIGHTS_FILE, HEAD_FILE, LABELS_FILE
from smedje.domain.jobs import Checkpoint, FineTuningJob
from smedje.domain.projects import Project
from smedje.errors import InvalidRequest, NotFound
from smedje.modeling.folder import is_complete, model_folder
from smedje.services.certificate import check_certificate
from smedje.services.classifiers import labels_of
from smedje.services.context import Context
from smedje.services.whole_models import tuned_in_full
from smedje.store import catalog as model_rows
from smedje.store import files as file_rows
from smedje.store import jobs as job_rows

CARD = "README.md"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", LABELS_FILE, HEAD_FILE, FULL_WEIGHTS_FILE)


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One file of a model. bytes: its size."""

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A model and where it came from. key: object-storage prefix of its adapter."""

    name: str
    key: str
    base_model: str
    step: int
    job: FineTuningJob | None
    checkpoint: Checkpoint | None
    digests: dict[str, str]
    labels: tuple[str, ...] = ()
    full: bool = False


def list_model_files(ctx: Context, project: Project, name: str) -> tuple[str, list[ModelFile]]:
    """The base model's name; the card, then the adapter's files. Raises NotFound, InvalidRequest for a base model,
    Conflict when the installed base model is not what it was trained on."""
    source = _source(ctx, project, name)
    if is_complete(model_folder(ctx.home, source.base_model)):
        check_certificate(ctx, source.base_model, source.key)
    sizes = {found.key.rpartition("/")[2]: found.size for found in ctx.objects.list(source.key)}
    adapter = [ModelFile(name=file, bytes=sizes[file]) for file in ADAPTER_FILES if file in sizes]
    return source.base_model, [ModelFile(name=CARD, bytes=len(_card(source))), *adapter]


def read_model_file(ctx: Context, project: Project, name: str, file: str) -> Iterator[bytes]:
    """The bytes of one of these files. Raises as `list_model_files`, and NotFound for another file."""
    source = _source(ctx, project, name)
    if file == CARD:
        return iter([_card(source)])
    if file not in ADAPTER_FILES or not ctx.objects.exists(f"{source.key}/{file}"):
        raise NotFound(f"{name} has no file {file[:100]!r}.", code="file_not_found", param="file")
    return ctx.objects.iter_bytes(f"{source.key}/{file}")


def _source(ctx: Context, project: Project, name: str) -> _Source:
    if not name.startswith("ft:"):
        raise InvalidRequest(
            f"{name[:100]!r} is no fine-tuned model. A base model's files lie in the state folder of this machine.",
            code="not_fine_tuned",
            param="model",
        )
    with ctx.database.transaction() as tx:
        model = model_rows.get_model(tx, project.id, name)
        checkpoint = job_rows.find_checkpoint(tx, project.id, name) if model is None else None
        job_id = model.job_id if model else checkpoint.job_id if checkpoint else None
        job = None if job_id is None else job_rows.get_job(tx, project.id, job_id)
        if model is not None and job is not None:
            found = job_rows.list_checkpoints(tx, project.id, job.id, after=None, limit=1000)
            checkpoint = next((one for one in found if one.step == model.step), None)
        digests = {} if job is None else _digests(tx, project, job)
    if model is not None:
        key, base, step = model.checkpoint_key, model.base_model, model.step
    elif checkpoint is not None and job is not None:
        key, base, step = checkpoint.key, job.request.base_model, checkpoint.step
    else:
        raise NotFound(f"There is no model {name[:100]!r} in this project.", code="model_not_found", param="model")
    return _Source(
        name=name,
        key=key,
        base_model=base,
        step=step,
        job=job,
        checkpoint=checkpoint,
        digests=digests,
        labels=labels_of(ctx, key),
        full=tuned_in_full(ctx, key),
    )


def _digests(tx: Connection, project: Project, job: FineTuningJob) -> dict[str, str]:
    """Which file it was trained and measured on, as far as they are still there."""
    named = {"training": job.request.training_file, "validation": job.request.validation_file}
    found = {label: file_rows.get_file(tx, project.id, file_id) for label, file_id in named.items() if file_id}
    return {label: file.sha256 for label, file in found.items() if file is not None}


def _card(source: _Source) -> bytes:
    """A model card in the form of the hub: what it was made from, how, and how well it did. No training text."""
    job = source.job
    lines = [
        "---",
        f"base_model: {source.base_model}",
        f"library_name: {'transformers' if source.full else 'peft'}",
        f"pipeline_tag: {'text-classification' if source.labels else 'text-generation'}",
        f"tags: [{'full' if source.full else 'lora'}, smedje]",
        "---",
        "",
        f"# {source.name}",
        "",
        f"{'All weights of' if source.full else 'A LoRA adapter for'} `{source.base_model}`, "
        f"{'tuned and ' if source.full else ''}taken after step {source.step}.",
        "",
    ]
    if source.labels:
        names = ", ".join(f"`{name}`" for name in source.labels)
        lines += [f"A classifier: its head reads the last token of a prompt. Labels: {names}.", ""]
    if source.digests:
        lines += ["## Data", "", "| file | SHA-256 |", "|---|---|"]
        lines += [f"| {label} | `{digest}` |" for label, digest in source.digests.items()] + [""]
    if job is not None:
        numbers: dict[str, Any] = {"method": job.request.method, "seed": job.request.seed, **(job.resolved or {})}
        lines += ["## Training", "", f"Job `{job.id}`; {job.trained_tokens or 0:,} tokens seen.", ""]
        lines += _table("setting", numbers)
    if source.checkpoint is not None:
        lines += ["## Metrics", "", *_table("metric", dict(source.checkpoint.metrics))]
    return ("\n".join(lines).rstrip() + "\n").encode()


def _table(head: str, values: dict[str, Any]) -> list[str]:
    plain = {name: value for name, value in values.items() if isinstance(value, str | int | float | bool)}
    return [f"| {head} | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in plain.items()), ""]
