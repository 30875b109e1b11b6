"""The tables of people: who they are, how they sign in, and which roles they have. The rest is in `tables.py`."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Table, Text, UniqueConstraint

from smedje.store.columns import at, json, own_id, seq, tables

# People. What they may do stands in assignments.
members = Table(
    "members",
    tables,
    seq(),
    own_id(),
    Column("email", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    at("created_at"),
    Column("kind", Text, nullable=False, server_default="person"),
    Column("password_hash", Text),
    Column("issuer", Text),
    Column("subject", Text),
    at("disabled_at", nullable=True),
    at("last_sign_in_at", nullable=True),
    Index(None, "issuer", "subject", unique=True),
    sqlite_autoincrement=True,
)

# Browser sessions. The cookie's secret itself is nowhere; sha256 is the hex digest by which a session is found.
sessions = Table(
    "sessions",
    tables,
    seq(),
    own_id(),
    Column("sha256", Text, nullable=False, unique=True),
    Column("member_id", Text, ForeignKey("members.id"), nullable=False, index=True),
    Column("project_id", Text, ForeignKey("projects.id")),
    at("created_at"),
    at("expires_at"),
    at("last_used_at"),
    at("ended_at", nullable=True),
    sqlite_autoincrement=True,
)

# Attempts to sign in that have not succeeded. account: digest of the address that was typed, known or not.
sign_in_attempts = Table(
    "sign_in_attempts",
    tables,
    seq(),
    Column("account", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("at", BigInteger, nullable=False, index=True),
    sqlite_autoincrement=True,
)

# Roles that a hub made for itself. Assignments and keys name one by its id.
custom_roles = Table(
    "custom_roles",
    tables,
    seq(),
    own_id(),
    Column("hub_id", Text, ForeignKey("hubs.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("permissions", json(), nullable=False),
    at("created_at"),
    UniqueConstraint("hub_id", "name"),
    sqlite_autoincrement=True,
)

# scope_id is the project's id, or the hub's when project_id is null: one role a member and place. role: a built-in
# role's word or a custom one's id. origin: given by somebody, or mapped from the groups of an identity provider.
assignments = Table(
    "assignments",
    tables,
    seq(),
    Column("member_id", Text, ForeignKey("members.id"), nullable=False),
    Column("scope_id", Text, nullable=False),
    Column("hub_id", Text, ForeignKey("hubs.id"), nullable=False),
    Column("project_id", Text, ForeignKey("projects.id")),
    Column("role", Text, nullable=False),
    at("created_at"),
    Column("origin", Text, nullable=False, server_default="given"),
    UniqueConstraint("member_id", "scope_id"),
    Index(None, "scope_id"),
    sqlite_autoincrement=True,
)
