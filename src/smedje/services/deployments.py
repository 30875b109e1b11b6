"""Deployments: giving a model a name under which it serves, and taking the name back.

Knows names and what they point at; engines are started by whoever serves the first request.
"""

import re

from smedje.domain.deployments import Deployment, DeploymentStatus
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

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?\Z")


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
    origin = resolve_origin(ctx, project.id, model)
    check_certificate(ctx, origin.base_model, origin.adapter_key)
    deployment = Deployment(
        id=new_id(DEPLOYMENT),
        project_id=project.id,
        name=name,
        model=model,
        base_model=origin.base_model,
        adapter_key=origin.adapter_key,
        status=DeploymentStatus.READY,
        created_at=ctx.seconds(),
    )
    with ctx.database.transaction() as tx:
        if model.startswith("ft:") and not (
            model_rows.get_model(tx, project.id, model) or job_rows.find_checkpoint(tx, project.id, model)
        ):
            raise NotFound(f"The model {model} was deleted meanwhile.", code="model_not_found", param="model")
        check_room(ctx, tx, project.id, Limit.DEPLOYMENTS)
        store.insert_deployment(tx, deployment)
        record_in(ctx, tx, "deployment.created", project.id, deployment.id)
    return deployment


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
    """The project's deployments, or only those of one model."""
    with ctx.database.transaction() as tx:
        return list(store.list_deployments(tx, project.id, model=model))


def delete_deployment(ctx: Context, project: Project, name: str) -> None:
    """Take the name back; the model stays. Raises NotFound."""
    found = get_deployment(ctx, project, name)
    with ctx.database.transaction() as tx:
        store.delete_deployment(tx, project.id, name)
        record_in(ctx, tx, "deployment.deleted", project.id, found.id)
