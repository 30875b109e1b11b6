"""Deployments: giving a model a name under which it serves, changing what answers, and taking the name back.

Knows names and what they point at; engines are started by whoever serves the first request, and a deployment's keys
stand in `services/deployment_keys.py`.
"""

import re
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from smedje.domain.deployments import Canary, Deployment, DeploymentStatus, Revision, Served
from smedje.domain.ids import DEPLOYMENT, new_id
from smedje.domain.projects import Project
from smedje.domain.quotas import Limit
from smedje.errors import Conflict, InvalidRequest, NotFound
from smedje.services.audit import record_in
from smedje.services.catalog import installed_names, resolve_origin
from smedje.services.certificate import check_certificate
from smedje.services.context import Context
from smedje.services.quotas import check_room
from smedje.store import catalog as model_rows
from smedje.store import deployments as store
from smedje.store import jobs as job_rows
from smedje.store import projects as project_rows
from smedje.store import quotas as quota_rows

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?\Z")


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is to be different. model: what answers from now on, None to leave it. canary_model and canary_percent: a
    second model for that share; percent 0 ends it; both None to leave it."""

    model: str | None = None
    canary_model: str | None = None
    canary_percent: int | None = None


def create_deployment(ctx: Context, project: Project, *, name: str, model: str) -> Deployment:
    """Deploy a base model, a fine-tuned model or a checkpoint as `name`; it is `ready` when this returns.

    Raises InvalidRequest for a bad name, NotFound for an unknown model, Conflict for a name that is taken, or a base
    model that is not what the model was trained on (certificate_mismatch).
    """
    if not NAME.match(name):
        raise InvalidRequest(
            f"{name[:100]!r} cannot name a deployment. Use 1 to 64 letters, digits, '.', '_' or '-', beginning and "
            "ending with a letter or digit.",
            code="invalid_deployment_name",
            param="name",
        )
    if name in installed_names(ctx) and name != model:
        raise Conflict(
            f"{name} is the name of a base model; a deployment of another model cannot take it. Choose another name.",
            code="name_taken",
            param="name",
        )
    served = _servable(ctx, project, model)
    deployment = Deployment(
        id=new_id(DEPLOYMENT),
        project_id=project.id,
        name=name,
        model=model,
        base_model=served.base_model,
        adapter_key=served.adapter_key,
        status=DeploymentStatus.READY,
        created_at=ctx.seconds(),
    )
    with ctx.database.transaction() as tx:
        _check_still_there(project, served, tx)
        check_room(ctx, tx, project.id, Limit.DEPLOYMENTS)
        store.insert_deployment(tx, deployment)
        record_in(ctx, tx, "deployment.created", project.id, deployment.id)
    return deployment


def change_deployment(ctx: Context, project: Project, name: str, change: Change) -> Deployment:
    """Point a deployment at another model, or give a second one a share; the next request sees it.

    A canary that becomes the model ends as a canary. Raises NotFound, InvalidRequest, Conflict (as creation does, and
    `deployment_changed` when someone else was faster).
    """
    found = get_deployment(ctx, project, name)
    if change == Change():
        raise InvalidRequest("Name what is to change: model or canary.", code="missing_field", param="model")
    changed = found
    if change.model is not None and change.model != found.model:
        served = _servable(ctx, project, change.model)
        canary = None if found.canary is not None and found.canary.served.model == served.model else found.canary
        changed = replace(
            changed,
            model=served.model,
            base_model=served.base_model,
            adapter_key=served.adapter_key,
            revision=found.revision + 1,
            canary=canary,
        )
    changed = replace(changed, canary=_canary(ctx, project, changed, change))
    with ctx.database.transaction() as tx:
        _check_still_there(project, changed.main, tx)
        if changed.canary is not None:
            _check_still_there(project, changed.canary.served, tx)
        store.save_deployment(tx, changed, was=found.revision, now=ctx.seconds())
        record_in(ctx, tx, "deployment.updated", project.id, found.id)
    return changed


def roll_back(ctx: Context, project: Project, name: str, *, revision: int | None = None) -> Deployment:
    """Answer again with the model of an earlier revision, the one before this by default; a canary ends.

    Raises NotFound for an unknown deployment or revision, or a model that was deleted since.
    """
    found = get_deployment(ctx, project, name)
    known = list_revisions(ctx, project, name)
    target = next(
        (one for one in known if (one.number == revision if revision is not None else one.model != found.model)), None
    )
    if target is None:
        listed = ", ".join(f"{one.number} ({one.model})" for one in known)
        raise NotFound(
            f"{name} has no {'earlier model' if revision is None else f'revision {revision}'} to go back to. "
            f"Revisions: {listed}.",
            code="revision_not_found",
            param="revision",
        )
    return change_deployment(ctx, project, name, Change(model=target.model, canary_percent=0))


def get_deployment(ctx: Context, project: Project, name: str) -> Deployment:
    """Raises NotFound when this project has no such deployment."""
    with ctx.database.transaction() as tx:
        found = store.get_deployment(tx, project.id, name)
    if found is None:
        raise NotFound(
            f"There is no deployment {name[:100]!r} in this project.", code="deployment_not_found", param="name"
        )
    return found


def list_deployments(ctx: Context, project: Project, *, model: str | None = None) -> list[Deployment]:
    """The project's deployments, or only those that one model answers for."""
    with ctx.database.transaction() as tx:
        return list(store.list_deployments(tx, project.id, model=model))


def list_revisions(ctx: Context, project: Project, name: str) -> list[Revision]:
    """The models that a deployment has answered with, newest first. Raises NotFound."""
    found = get_deployment(ctx, project, name)
    with ctx.database.transaction() as tx:
        return store.list_revisions(tx, found.id)


def delete_deployment(ctx: Context, project: Project, name: str) -> None:
    """Take the name back with its keys and limits; the model stays. Raises NotFound."""
    found = get_deployment(ctx, project, name)
    with ctx.database.transaction() as tx:
        store.delete_deployment(tx, project.id, name)
        project_rows.revoke_deployment_keys(tx, project.id, name, ctx.seconds())
        quota_rows.drop_quotas(tx, project.id, deployment=name)
        record_in(ctx, tx, "deployment.deleted", project.id, found.id)


def _check_still_there(project: Project, served: Served, tx: Connection) -> None:
    model = served.model
    if model.startswith("ft:") and not (
        model_rows.get_model(tx, project.id, model) or job_rows.find_checkpoint(tx, project.id, model)
    ):
        raise NotFound(f"The model {model} was deleted meanwhile.", code="model_not_found", param="model")


def _servable(ctx: Context, project: Project, model: str) -> Served:
    origin = resolve_origin(ctx, project.id, model)
    check_certificate(ctx, origin.base_model, origin.adapter_key)
    return Served(model=model, base_model=origin.base_model, adapter_key=origin.adapter_key)


def _canary(ctx: Context, project: Project, deployment: Deployment, change: Change) -> Canary | None:
    """The deployment's canary after a change of it."""
    name, percent = change.canary_model, change.canary_percent
    if name is None and percent is None:
        return deployment.canary
    if percent == 0:
        return None
    if percent is None or not 1 <= percent <= 99:
        raise InvalidRequest(
            f"canary.percent must be a whole number from 0 (ends it) to 99, found {percent}. To give a model all "
            "requests, make it the deployment's model.",
            code="invalid_value",
            param="canary.percent",
        )
    if name is None:
        if deployment.canary is None:
            raise InvalidRequest(
                f"{deployment.name} has no canary whose share could change; name its model.",
                code="missing_field",
                param="canary.model",
            )
        return replace(deployment.canary, percent=percent)
    if name == deployment.model:
        raise InvalidRequest(
            f"{name} answers for {deployment.name} already; a canary is another model.",
            code="invalid_value",
            param="canary.model",
        )
    return Canary(served=_servable(ctx, project, name), percent=percent)
