"""Queries for deployments."""

from typing import Any

from sqlalchemy import Connection, Row, delete, or_, select, update

from smedje.domain.deployments import Canary, Deployment, DeploymentStatus, Revision, Served
from smedje.errors import Conflict, NotFound
from smedje.store.paging import insert_if_new
from smedje.store.tables import deployment_revisions, deployments


def insert_deployment(tx: Connection, deployment: Deployment) -> None:
    """Record a deployment. Raises Conflict when the project has one of this name."""
    fixed = {name: getattr(deployment, name) for name in ("id", "project_id", "name", "created_at")}
    if not insert_if_new(tx, deployments, {**fixed, **_changing(deployment)}):
        raise Conflict(
            f"There is already a deployment called {deployment.name}. Change its model, delete it, or choose another "
            "name.",
            code="deployment_exists",
            param="name",
        )
    _keep_revision(tx, deployment, deployment.created_at)


def get_deployment(tx: Connection, project_id: str, name: str) -> Deployment | None:
    """The project's deployment of this name."""
    named = (deployments.c.project_id == project_id, deployments.c.name == name)
    row = tx.execute(select(deployments).where(*named)).first()
    return None if row is None else _deployment(row)


def list_deployments(tx: Connection, project_id: str, *, model: str | None = None) -> list[Deployment]:
    """The project's deployments, or only those that one model answers for, also as a canary; newest first."""
    query = select(deployments).where(deployments.c.project_id == project_id).order_by(deployments.c.seq.desc())
    if model is not None:
        query = query.where(or_(deployments.c.model == model, deployments.c.canary_model == model))
    return [_deployment(r) for r in tx.execute(query)]


def save_deployment(tx: Connection, deployment: Deployment, *, was: int, now: int) -> None:
    """Replace what may change; a new revision is kept. was: the revision that the change started from.

    Raises NotFound when it is gone, Conflict when someone else changed its model meanwhile.
    """
    same = (deployments.c.project_id == deployment.project_id, deployments.c.id == deployment.id)
    change = update(deployments).where(*same, deployments.c.revision == was).values(**_changing(deployment))
    if tx.execute(change).rowcount == 0:
        if tx.execute(select(deployments.c.seq).where(*same)).first() is None:
            raise NotFound(
                f"There is no deployment {deployment.name} any more.", code="deployment_not_found", param="name"
            )
        raise Conflict(
            f"Someone else changed the deployment {deployment.name} meanwhile. Look at it, and try again.",
            code="deployment_changed",
        )
    if deployment.revision != was:
        _keep_revision(tx, deployment, now)


def list_revisions(tx: Connection, deployment_id: str) -> list[Revision]:
    """The models that a deployment has answered with, newest first."""
    table = deployment_revisions
    query = select(table).where(table.c.deployment_id == deployment_id).order_by(table.c.number.desc())
    return [Revision(number=r.number, model=r.model, created_at=r.created_at) for r in tx.execute(query)]


def delete_deployment(tx: Connection, project_id: str, name: str) -> bool:
    """Forget a deployment; returns whether the project had it."""
    named = (deployments.c.project_id == project_id, deployments.c.name == name)
    return tx.execute(delete(deployments).where(*named)).rowcount > 0


def _changing(deployment: Deployment) -> dict[str, Any]:
    canary = deployment.canary
    names = ("model", "base_model", "adapter_key", "status", "error", "revision")
    return {
        **{name: getattr(deployment, name) for name in names},
        "canary_model": canary and canary.served.model,
        "canary_base_model": canary and canary.served.base_model,
        "canary_adapter_key": canary and canary.served.adapter_key,
        "canary_percent": 0 if canary is None else canary.percent,
    }


def _keep_revision(tx: Connection, deployment: Deployment, now: int) -> None:
    values = {
        "project_id": deployment.project_id,
        "deployment_id": deployment.id,
        "number": deployment.revision,
        "model": deployment.model,
        "created_at": now,
    }
    insert_if_new(tx, deployment_revisions, values)


def _deployment(row: Row[Any]) -> Deployment:
    canary = None
    if row.canary_model is not None:
        served = Served(model=row.canary_model, base_model=row.canary_base_model, adapter_key=row.canary_adapter_key)
        canary = Canary(served=served, percent=row.canary_percent)
    return Deployment(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        model=row.model,
        base_model=row.base_model,
        adapter_key=row.adapter_key,
        status=DeploymentStatus(row.status),
        created_at=row.created_at,
        error=row.error,
        revision=row.revision,
        canary=canary,
    )
