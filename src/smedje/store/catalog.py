"""Queries for fine-tuned models. Base models are no rows: they are data and folders."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, select

from smedje.domain.catalog import FineTunedModel
from smedje.errors import Conflict
from smedje.store.paging import insert_if_new
from smedje.store.tables import fine_tuned_models as models


def insert_model(tx: Connection, model: FineTunedModel) -> None:
    """Record a job's result. Raises Conflict when the project has a model of this name."""
    if not insert_if_new(tx, models, asdict(model)):
        raise Conflict(f"There is already a model called {model.id}.", code="model_exists", param="model")


def get_model(tx: Connection, project_id: str, name: str) -> FineTunedModel | None:
    """The project's fine-tuned model of this name."""
    row = tx.execute(select(models).where(models.c.project_id == project_id, models.c.id == name)).first()
    return None if row is None else _model(row)


def list_models(tx: Connection, project_id: str) -> list[FineTunedModel]:
    """The project's fine-tuned models, newest first."""
    query = select(models).where(models.c.project_id == project_id).order_by(models.c.seq.desc())
    return [_model(row) for row in tx.execute(query)]


def delete_model(tx: Connection, project_id: str, name: str) -> bool:
    """Forget a fine-tuned model; returns whether the project had it. Whether it is deployed is the caller's check."""
    return tx.execute(delete(models).where(models.c.project_id == project_id, models.c.id == name)).rowcount > 0


def _model(row: Row[Any]) -> FineTunedModel:
    return FineTunedModel(
        id=row.id,
        project_id=row.project_id,
        base_model=row.base_model,
        job_id=row.job_id,
        suffix=row.suffix,
        checkpoint_key=row.checkpoint_key,
        step=row.step,
        created_at=row.created_at,
    )
