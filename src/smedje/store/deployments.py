"""Queries for deployments."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update

from smedje.domain.deployments import Deployment, DeploymentStatus
from smedje.errors import Conflict, NotFound
from smedje.store.paging import insert_if_new
from smedje.store.tables import deployments


def insert_deployment(tx: Connection, deployment: Deployment) -> None:
    """Record a deployment. Raises Conflict when the project has one of this name."""
    if not insert_if_new(tx, deployments, asdict(deployment)):
        raise Conflict(
            f"There is already a deployment called {deployment.name}. Delete it first, or choose another name.",
            code="deployment_exists",
            param="name",
        )


def get_deployment(tx: Connection, project_id: str, name: str) -> Deployment | None:
    """The project's deployment of this name."""
    named = (deployments.c.project_id == project_id, deployments.c.name == name)
    row = tx.execute(select(deployments).where(*named)).first()
    return None if row is None else _deployment(row)


def list_deployments(tx: Connection, project_id: str, *, model: str | None = None) -> list[Deployment]:
    """The project's deployments, or only those of one model, newest first."""
    query = select(deployments).where(deployments.c.project_id == project_id).order_by(deployments.c.seq.desc())
    return [_deployment(r) for r in tx.execute(query if model is None else query.where(deployments.c.model == model))]


def save_deployment(tx: Connection, deployment: Deployment) -> None:
    """Replace what may change: model, base model, adapter, status, error. Raises NotFound when it is gone."""
    changes = {name: getattr(deployment, name) for name in ("model", "base_model", "adapter_key", "status", "error")}
    same = (deployments.c.project_id == deployment.project_id, deployments.c.id == deployment.id)
    if tx.execute(update(deployments).where(*same).values(**changes)).rowcount == 0:
        raise NotFound(f"There is no deployment {deployment.name} any more.", code="deployment_not_found", param="name")


def delete_deployment(tx: Connection, project_id: str, name: str) -> bool:
    """Forget a deployment; returns whether the project had it."""
    named = (deployments.c.project_id == project_id, deployments.c.name == name)
    return tx.execute(delete(deployments).where(*named)).rowcount > 0


def _deployment(row: Row[Any]) -> Deployment:
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
    )
