"""Models as callers see them: what is installed, what was tuned, and what a name stands for.

Knows the rules of names and of deletion; knows nothing of tensors or of how a model is fetched.
"""

import difflib
import secrets
from dataclasses import dataclass

from smedje.domain.catalog import BaseModel, FineTunedModel, TrainingLimits, parse_model_name
from smedje.domain.deployments import answering
from smedje.domain.projects import Project
from smedje.errors import InvalidRequest, NotFound
from smedje.modeling.catalog import find_base_model, load_catalog, search_catalog
from smedje.modeling.folder import installed_folder, installed_models
from smedje.services.context import Context
from smedje.services.training_spec import Origin
from smedje.store import catalog as store
from smedje.store import deployments as deployment_rows
from smedje.store import jobs as job_rows

# For base models that a user installed under a name of their own: what the request format itself allows.
GENERAL_LIMITS = TrainingLimits(max_tokens_per_example=131_072)


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One line of the list of models. fine_tuned: None for an installed base model. publisher: empty when unknown."""

    name: str
    created_at: int
    publisher: str = ""
    fine_tuned: FineTunedModel | None = None


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """What a name stands for: a base model, perhaps with an adapter (an object-storage prefix).

    deployment: its name, when the name was a deployment's. model: the model's own name.
    """

    model: str
    base_model: str
    adapter_key: str | None = None
    deployment: str | None = None


def list_models(ctx: Context, project: Project) -> list[ModelEntry]:
    """Installed base models by name, then this project's fine-tuned models, newest first."""
    with ctx.database.transaction() as tx:
        tuned = store.list_models(tx, project.id)
    bases = [_base_entry(found.name, found.created_at) for found in installed_models(ctx.home)]
    newest_first = sorted(tuned, key=lambda model: -model.created_at)
    return bases + [_tuned_entry(model) for model in newest_first]


def get_model(ctx: Context, project: Project, name: str) -> ModelEntry:
    """One installed base model, fine-tuned model or checkpoint. Raises NotFound with the nearest names."""
    if name.startswith("ft:"):
        with ctx.database.transaction() as tx:
            model = store.get_model(tx, project.id, name)
            checkpoint = job_rows.find_checkpoint(tx, project.id, name) if model is None else None
        if model is not None:
            return _tuned_entry(model)
        if checkpoint is not None:
            return ModelEntry(name=checkpoint.model_name, created_at=checkpoint.created_at)
        raise _unknown(ctx, project, name)
    for found in installed_models(ctx.home):
        if found.name == name:
            return _base_entry(found.name, found.created_at)
    raise _unknown(ctx, project, name)


def search(text: str, *, family: str | None = None, method: str | None = None) -> tuple[BaseModel, ...]:
    """Catalog entries that hold every word of `text`, of one family, or that can be tuned by one method."""
    return search_catalog(text, family=family, method=method)


def resolve(ctx: Context, project_id: str, name: str) -> ResolvedModel:
    """What a caller means by `model`: a deployment's, fine-tuned model's, checkpoint's or base model's name.

    A deployment with a canary gives it for its share of the calls, drawn anew each time.
    Raises NotFound (`model_not_found`, `model_not_installed`): a foreign name looks exactly like an unknown one.
    """
    with ctx.database.transaction() as tx:
        deployment = None if name.startswith("ft:") else deployment_rows.get_deployment(tx, project_id, name)
    if deployment is not None:
        served = answering(deployment, secrets.token_hex(8))
        return ResolvedModel(
            model=served.model,
            base_model=served.base_model,
            adapter_key=served.adapter_key,
            deployment=deployment.name,
        )
    origin = resolve_origin(ctx, project_id, name)
    return ResolvedModel(model=name, base_model=origin.base_model, adapter_key=origin.adapter_key)


def resolve_origin(ctx: Context, project_id: str, name: str) -> Origin:
    """What a model's own name (never a deployment's) stands for, with its base model installed. Raises as `resolve`."""
    if not name.startswith("ft:"):
        _check_installed(ctx, name)
        return Origin(base_model=name)
    try:
        parse_model_name(name)
    except InvalidRequest as problem:
        raise NotFound(problem.message, code="model_not_found", param="model") from None
    with ctx.database.transaction() as tx:
        model = store.get_model(tx, project_id, name)
        checkpoint = job_rows.find_checkpoint(tx, project_id, name) if model is None else None
        job = None if checkpoint is None else job_rows.get_job(tx, project_id, checkpoint.job_id)
    if model is not None:
        installed_folder(ctx.home, model.base_model)
        return Origin(base_model=model.base_model, adapter_key=model.checkpoint_key)
    if checkpoint is not None and job is not None:
        installed_folder(ctx.home, job.request.base_model)
        return Origin(base_model=job.request.base_model, adapter_key=checkpoint.key)
    raise NotFound(f"There is no model {name!r} in this project.", code="model_not_found", param="model")


def training_limits(base_model: str) -> TrainingLimits:
    """The catalog's limits for a base model, or general ones for a model that only this machine knows."""
    try:
        return find_base_model(base_model).limits
    except NotFound:
        return GENERAL_LIMITS


def installed_names(ctx: Context) -> frozenset[str]:
    """Names of the base models on this machine."""
    return frozenset(found.name for found in installed_models(ctx.home))


def _check_installed(ctx: Context, name: str) -> None:
    """Raises NotFound: `model_not_installed` with the command to run, or `model_not_found` with the nearest names."""
    if name in load_catalog():
        installed_folder(ctx.home, name)
    elif name not in (known := installed_names(ctx)):
        near = difflib.get_close_matches(
            name.rpartition("/")[2].lower(), known | load_catalog().keys(), n=3, cutoff=0.5
        )
        hint = f" Did you mean {' or '.join(near)}?" if near else f" Installed: {', '.join(sorted(known)) or 'none'}."
        raise NotFound(f"There is no model {name[:100]!r}.{hint}", code="model_not_found", param="model")


def _unknown(ctx: Context, project: Project, name: str) -> NotFound:
    try:
        resolve_origin(ctx, project.id, name)
    except NotFound as error:
        return error
    return NotFound(f"There is no model {name[:100]!r}.", code="model_not_found", param="model")


def _base_entry(name: str, created_at: int) -> ModelEntry:
    known: BaseModel | None = load_catalog().get(name)
    return ModelEntry(name=name, created_at=created_at, publisher=known.publisher if known else "")


def _tuned_entry(model: FineTunedModel) -> ModelEntry:
    return ModelEntry(name=model.id, created_at=model.created_at, fine_tuned=model)
