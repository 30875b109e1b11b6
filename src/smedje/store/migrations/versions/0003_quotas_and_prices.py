"""Quotas, what is reserved under them, and price tables."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the three tables."""
    op.create_table(
        "quotas",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_quotas_project_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_quotas")),
        sa.UniqueConstraint("project_id", "deployment", "name", name=op.f("uq_quotas_project_id_deployment_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "reservations",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("money", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_reservations_project_id")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_reservations_job_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_reservations")),
        sa.UniqueConstraint("id", name=op.f("uq_reservations_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_reservations_project_id_seq"), "reservations", ["project_id", "seq"], unique=False)
    numbers = ("training_tokens", "prompt_tokens", "completion_tokens", "device_hour")
    op.create_table(
        "prices",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in numbers),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_prices")),
        sqlite_autoincrement=True,
    )
