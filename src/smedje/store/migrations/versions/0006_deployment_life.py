"""Deployments that change: a second model for a share of the requests, what they served before, keys of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Widen two tables and make one."""
    op.add_column("deployments", sa.Column("revision", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("deployments", sa.Column("canary_model", sa.Text()))
    op.add_column("deployments", sa.Column("canary_base_model", sa.Text()))
    op.add_column("deployments", sa.Column("canary_adapter_key", sa.Text()))
    op.add_column("deployments", sa.Column("canary_percent", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("api_keys", sa.Column("deployment", sa.Text()))
    op.create_table(
        "deployment_revisions",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("deployment_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_deployment_revisions_project_id")),
        sa.ForeignKeyConstraint(
            ["deployment_id"],
            ["deployments.id"],
            name=op.f("fk_deployment_revisions_deployment_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_deployment_revisions")),
        sa.UniqueConstraint("deployment_id", "number", name=op.f("uq_deployment_revisions_deployment_id_number")),
        sqlite_autoincrement=True,
    )
    op.execute(
        "INSERT INTO deployment_revisions (project_id, deployment_id, number, model, created_at) "
        "SELECT project_id, id, 1, model, created_at FROM deployments"
    )
