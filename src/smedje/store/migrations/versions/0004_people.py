"""People who sign in: accounts, browser sessions, failed attempts; roles of a hub's own making."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Widen members and assignments; make the new tables."""
    op.add_column("members", sa.Column("kind", sa.Text(), nullable=False, server_default="person"))
    for column in ("password_hash", "issuer", "subject"):
        op.add_column("members", sa.Column(column, sa.Text()))
    for column in ("disabled_at", "last_sign_in_at"):
        op.add_column("members", sa.Column(column, sa.BigInteger()))
    op.create_index(op.f("ix_members_issuer_subject"), "members", ["issuer", "subject"], unique=True)
    op.add_column("assignments", sa.Column("origin", sa.Text(), nullable=False, server_default="given"))
    _sessions()
    _sign_in_attempts()
    _custom_roles()


def _sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_sessions_member_id")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_sessions_project_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_sessions")),
        sa.UniqueConstraint("id", name=op.f("uq_sessions_id")),
        sa.UniqueConstraint("sha256", name=op.f("uq_sessions_sha256")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_sessions_member_id"), "sessions", ["member_id"], unique=False)


def _sign_in_attempts() -> None:
    op.create_table(
        "sign_in_attempts",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_sign_in_attempts")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_sign_in_attempts_at"), "sign_in_attempts", ["at"], unique=False)


def _custom_roles() -> None:
    op.create_table(
        "custom_roles",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("hub_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("permissions", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["hub_id"], ["hubs.id"], name=op.f("fk_custom_roles_hub_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_custom_roles")),
        sa.UniqueConstraint("id", name=op.f("uq_custom_roles_id")),
        sa.UniqueConstraint("hub_id", "name", name=op.f("uq_custom_roles_hub_id_name")),
        sqlite_autoincrement=True,
    )
