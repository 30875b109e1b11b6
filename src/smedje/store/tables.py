"""Every table. Knows columns, keys and indexes; knows nothing of queries.

`seq` counts up with every insert, so newest-first lists and their cursors are stable within a second. Every row that
belongs to a project says so itself. JSON columns hold small facts; bytes live in object storage. Times are Unix
seconds. A change here needs a migration: a test compares a migrated database with this file.
"""

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, Table, Text, UniqueConstraint, text

from smedje.store.columns import at as _at
from smedje.store.columns import job as _job
from smedje.store.columns import json as _json
from smedje.store.columns import own_id as _id
from smedje.store.columns import project as _project
from smedje.store.columns import seq as _seq
from smedje.store.columns import tables as tables
from smedje.store.people_tables import assignments as assignments
from smedje.store.people_tables import custom_roles as custom_roles
from smedje.store.people_tables import members as members
from smedje.store.people_tables import sessions as sessions
from smedje.store.people_tables import sign_in_attempts as sign_in_attempts
from smedje.store.upkeep_tables import deliveries as deliveries
from smedje.store.upkeep_tables import erasures as erasures
from smedje.store.upkeep_tables import locations as locations
from smedje.store.upkeep_tables import retention as retention
from smedje.store.upkeep_tables import storage_meters as storage_meters
from smedje.store.upkeep_tables import webhooks as webhooks

# Number of the newest migration. A test compares it with the files in migrations/versions.
SCHEMA = "0006"

hubs = Table(
    "hubs",
    tables,
    _seq(),
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("display_name", Text, nullable=False),
    Column("location", Text, nullable=False),
    _at("created_at"),
    Column("description", Text, nullable=False, server_default=text("''")),
    Column("subscription", Text, nullable=False, server_default=text("''")),
    Column("resource_group", Text, nullable=False, server_default=text("''")),
    Column("ai_services", Text),
    Column("search", Text),
    Column("tags", _json()),
    _at("archived_at", nullable=True),
    _at("deleted_at", nullable=True),
    sqlite_autoincrement=True,
)

projects = Table(
    "projects",
    tables,
    _seq(),
    _id(),
    Column("hub_id", Text, ForeignKey("hubs.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    _at("created_at"),
    Column("display_name", Text, nullable=False, server_default=text("''")),
    Column("tags", _json()),
    _at("archived_at", nullable=True),
    _at("deleted_at", nullable=True),
    UniqueConstraint("hub_id", "name"),
    sqlite_autoincrement=True,
)

# Who did what to which object. Each row's hash covers the one before; nothing is ever changed or taken away here.
audit = Table(
    "audit",
    tables,
    _seq(),
    _id(),
    _at("at"),
    Column("action", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    Column("hub_id", Text),
    Column("project_id", Text),
    Column("key_id", Text),
    Column("member_id", Text),
    Column("address", Text),
    Column("request_id", Text),
    Column("details", Text, nullable=False),
    Column("previous", Text, nullable=False, unique=True),
    Column("hash", Text, nullable=False),
    Index(None, "project_id", "seq"),
    sqlite_autoincrement=True,
)

# The secret itself is nowhere; sha256 is the hex digest by which a caller's key is found.
api_keys = Table(
    "api_keys",
    tables,
    _seq(),
    _id(),
    _project(),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("last_four", Text, nullable=False),
    Column("sha256", Text, nullable=False, unique=True),
    _at("created_at"),
    _at("expires_at", nullable=True),
    _at("revoked_at", nullable=True),
    Column("scope", Text, nullable=False, server_default="project"),
    Column("member_id", Text, ForeignKey("members.id")),
    Column("permissions", _json()),
    _at("last_used_at", nullable=True),
    Column("deployment", Text),
    Index(None, "project_id", "seq"),
    sqlite_autoincrement=True,
)

files = Table(
    "files",
    tables,
    _seq(),
    _id(),
    _project(),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False, index=True),
    Column("status", Text, nullable=False),
    _at("created_at"),
    Column("status_details", Text),
    Column("examples", BigInteger),
    _at("expires_at", nullable=True),
    Index(None, "project_id", "seq"),
    sqlite_autoincrement=True,
)

# owner, lease_until and fence: which scheduler supervises the job, until when, and how often that has changed.
jobs = Table(
    "jobs",
    tables,
    _seq(),
    _id(),
    _project(),
    Column("status", Text, nullable=False),
    Column("request", _json(), nullable=False),
    Column("metadata", _json()),
    _at("created_at"),
    Column("resolved", _json()),
    _at("started_at", nullable=True),
    _at("finished_at", nullable=True),
    _at("estimated_finish", nullable=True),
    Column("trained_tokens", BigInteger),
    Column("fine_tuned_model", Text),
    Column("result_files", _json(), nullable=False),
    Column("error", _json()),
    Column("owner", Text),
    Column("lease_until", Float(53)),
    Column("fence", BigInteger, nullable=False, server_default="0"),
    Column("key_id", Text),
    Index(None, "project_id", "seq"),
    Index(None, "status", "seq"),
    sqlite_autoincrement=True,
)

# step is set for metrics alone: one row for each step, however often a resumed run repeats it.
job_events = Table(
    "job_events",
    tables,
    _seq(),
    _id(),
    _project(),
    _job(),
    _at("created_at"),
    Column("level", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("data", _json()),
    Column("step", BigInteger),
    UniqueConstraint("job_id", "step"),
    Index(None, "job_id", "seq"),
    sqlite_autoincrement=True,
)

checkpoints = Table(
    "checkpoints",
    tables,
    _seq(),
    _id(),
    _project(),
    _job(),
    Column("step", BigInteger, nullable=False),
    Column("model_name", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("metrics", _json(), nullable=False),
    _at("created_at"),
    Column("bytes", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("job_id", "step"),
    UniqueConstraint("project_id", "model_name"),
    Index(None, "job_id", "seq"),
    sqlite_autoincrement=True,
)

runs = Table(
    "runs",
    tables,
    _seq(),
    _id(),
    _project(),
    _job(),
    Column("attempt", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("executor", Text, nullable=False),
    Column("handle", _json(), nullable=False),
    _at("started_at"),
    Column("events_cursor", Text, nullable=False),
    _at("ended_at", nullable=True),
    UniqueConstraint("job_id", "attempt"),
    Index(None, "state", "seq"),
    sqlite_autoincrement=True,
)

# id is the model's name, unique in its project.
fine_tuned_models = Table(
    "fine_tuned_models",
    tables,
    _seq(),
    Column("id", Text, nullable=False),
    _project(),
    Column("base_model", Text, nullable=False),
    _job(),
    Column("suffix", Text, nullable=False),
    Column("checkpoint_key", Text, nullable=False),
    Column("step", BigInteger, nullable=False),
    _at("created_at"),
    UniqueConstraint("project_id", "id"),
    Index(None, "project_id", "seq"),
    sqlite_autoincrement=True,
)

deployments = Table(
    "deployments",
    tables,
    _seq(),
    _id(),
    _project(),
    Column("name", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("base_model", Text, nullable=False),
    Column("adapter_key", Text),
    Column("status", Text, nullable=False),
    _at("created_at"),
    Column("error", Text),
    Column("revision", Integer, nullable=False, server_default="1"),
    Column("canary_model", Text),
    Column("canary_base_model", Text),
    Column("canary_adapter_key", Text),
    Column("canary_percent", Integer, nullable=False, server_default="0"),
    UniqueConstraint("project_id", "name"),
    Index(None, "project_id", "model"),
    sqlite_autoincrement=True,
)

deployment_revisions = Table(
    "deployment_revisions",
    tables,
    _seq(),
    _project(),
    Column("deployment_id", Text, ForeignKey("deployments.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("model", Text, nullable=False),
    _at("created_at"),
    UniqueConstraint("deployment_id", "number"),
    sqlite_autoincrement=True,
)

usage = Table(
    "usage",
    tables,
    _seq(),
    _id(),
    _project(),
    Column("key_id", Text),
    Column("kind", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("trained_tokens", BigInteger, nullable=False),
    Column("seconds", Float(53), nullable=False),
    _at("created_at"),
    Column("byte_seconds", BigInteger, nullable=False, server_default="0"),
    Index(None, "project_id", "created_at"),
    sqlite_autoincrement=True,
)

# No row, no limit. deployment is empty for limits of the whole project.
quotas = Table(
    "quotas",
    tables,
    _seq(),
    _project(),
    Column("deployment", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("value", BigInteger, nullable=False),
    _at("updated_at"),
    Column("warn_percent", Integer, nullable=False, server_default="80"),
    _at("warned_at", nullable=True),
    UniqueConstraint("project_id", "deployment", "name"),
    sqlite_autoincrement=True,
)

# What work that has been let in may still use up. A job's row counts while the job is unfinished, another until
# expires_at; so a server that dies leaves nothing reserved for ever. money is in millionths.
reservations = Table(
    "reservations",
    tables,
    _seq(),
    _id(),
    _project(),
    Column("job_id", Text, ForeignKey("jobs.id")),
    Column("tokens", BigInteger, nullable=False),
    Column("money", BigInteger, nullable=False),
    _at("expires_at", nullable=True),
    Index(None, "project_id", "seq"),
    sqlite_autoincrement=True,
)

# Each row holds from valid_from until the next one's. Prices are millionths of the currency, for a million tokens
# or for an hour.
prices = Table(
    "prices",
    tables,
    _seq(),
    _at("valid_from"),
    Column("currency", Text, nullable=False),
    Column("training_tokens", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("device_hour", BigInteger, nullable=False),
    Column("storage_gb_day", BigInteger, nullable=False, server_default="0"),
    sqlite_autoincrement=True,
)
