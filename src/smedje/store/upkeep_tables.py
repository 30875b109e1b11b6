"""The tables of upkeep: webhooks and their deliveries, retention, erasures, locations, what storage was charged for.

The rest is in `tables.py`.
"""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Table, Text, UniqueConstraint

from smedje.store.columns import at, json, own_id, project, seq, tables

# Who is told about jobs. The signing secret itself is nowhere: it follows from the server's own and secret_version.
webhooks = Table(
    "webhooks",
    tables,
    seq(),
    own_id(),
    project(),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("event_types", json(), nullable=False),
    Column("secret_version", Integer, nullable=False),
    at("created_at"),
    at("updated_at"),
    at("old_secret_until", nullable=True),
    at("failing_since", nullable=True),
    at("disabled_at", nullable=True),
    Index(None, "project_id", "seq"),
    sqlite_autoincrement=True,
)

# What is still to be told, and what was: written with the change itself, so that nothing is lost. id: the event's.
deliveries = Table(
    "deliveries",
    tables,
    seq(),
    own_id(),
    project(),
    Column("webhook_id", Text, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("type", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    at("created_at"),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    at("next_at"),
    Column("status", Integer),
    Column("problem", Text),
    at("ended_at", nullable=True),
    Index(None, "state", "next_at"),
    Index(None, "webhook_id", "seq"),
    sqlite_autoincrement=True,
)

# How many days a project keeps what; no row, for ever.
retention = Table(
    "retention",
    tables,
    seq(),
    project(),
    Column("kind", Text, nullable=False),
    Column("days", Integer, nullable=False),
    at("updated_at"),
    UniqueConstraint("project_id", "kind"),
    sqlite_autoincrement=True,
)

# What was erased, by whom, and the certificate. leftovers: keys of bytes that are still to go, until state is `done`.
erasures = Table(
    "erasures",
    tables,
    seq(),
    own_id(),
    project(),
    at("created_at"),
    Column("state", Text, nullable=False),
    Column("leftovers", json(), nullable=False),
    Column("certificate", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    at("ended_at", nullable=True),
    Index(None, "project_id", "seq"),
    sqlite_autoincrement=True,
)

# Compute targets that have said what they can do, and when last.
locations = Table(
    "locations",
    tables,
    seq(),
    Column("name", Text, nullable=False, unique=True),
    Column("about", json(), nullable=False),
    at("seen_at"),
    sqlite_autoincrement=True,
)

# Until when a project's stored bytes have become usage.
storage_meters = Table(
    "storage_meters",
    tables,
    seq(),
    Column("project_id", Text, ForeignKey("projects.id"), nullable=False, unique=True),
    Column("metered_until", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
