"""Hubs and projects with all their fields, members and their roles, keys with a scope, and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Widen hubs, projects and keys; make the new tables."""
    for column in ("description", "subscription", "resource_group"):
        op.add_column("hubs", sa.Column(column, sa.Text(), nullable=False, server_default=sa.text("''")))
    for column in ("ai_services", "search"):
        op.add_column("hubs", sa.Column(column, sa.Text()))
    op.add_column("projects", sa.Column("display_name", sa.Text(), nullable=False, server_default=sa.text("''")))
    for table in ("hubs", "projects"):
        op.add_column(table, sa.Column("tags", sa.JSON()))
        op.add_column(table, sa.Column("archived_at", sa.BigInteger()))
        op.add_column(table, sa.Column("deleted_at", sa.BigInteger()))
    _members()
    _assignments()
    _audit()
    op.add_column("api_keys", sa.Column("scope", sa.Text(), nullable=False, server_default="project"))
    # In words of its own, because SQLite takes a foreign key only together with its column.
    op.execute(
        "ALTER TABLE api_keys ADD COLUMN member_id TEXT CONSTRAINT fk_api_keys_member_id REFERENCES members (id)"
    )
    op.add_column("api_keys", sa.Column("permissions", sa.JSON()))
    op.add_column("api_keys", sa.Column("last_used_at", sa.BigInteger()))
    # The keys of the first run were made for whoever runs the server.
    op.execute(
        "UPDATE api_keys SET scope = 'server' WHERE name IN ('owner', 'bootstrap') AND role = 'owner' AND "
        "project_id IN (SELECT projects.id FROM projects JOIN hubs ON hubs.id = projects.hub_id "
        "WHERE hubs.name = 'default' AND projects.name = 'default')"
    )


def _members() -> None:
    op.create_table(
        "members",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_members")),
        sa.UniqueConstraint("email", name=op.f("uq_members_email")),
        sa.UniqueConstraint("id", name=op.f("uq_members_id")),
        sqlite_autoincrement=True,
    )


def _assignments() -> None:
    op.create_table(
        "assignments",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False),
        sa.Column("scope_id", sa.Text(), nullable=False),
        sa.Column("hub_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_assignments_member_id")),
        sa.ForeignKeyConstraint(["hub_id"], ["hubs.id"], name=op.f("fk_assignments_hub_id")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_assignments_project_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_assignments")),
        sa.UniqueConstraint("member_id", "scope_id", name=op.f("uq_assignments_member_id_scope_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_assignments_scope_id"), "assignments", ["scope_id"], unique=False)


def _audit() -> None:
    words = ("hub_id", "project_id", "key_id", "member_id", "address", "request_id")
    op.create_table(
        "audit",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=True) for name in words),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit")),
        sa.UniqueConstraint("id", name=op.f("uq_audit_id")),
        sa.UniqueConstraint("previous", name=op.f("uq_audit_previous")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_audit_project_id_seq"), "audit", ["project_id", "seq"], unique=False)
