"""Hubs, projects, API keys, roles and permissions. Every other noun belongs to a project, every project to a hub."""

from dataclasses import dataclass
from enum import StrEnum


class Permission(StrEnum):
    """What a route may need. A route names exactly one; a role grants a set of them."""

    FILES_READ = "files.read"
    FILES_WRITE = "files.write"
    JOBS_READ = "jobs.read"
    JOBS_WRITE = "jobs.write"
    MODELS_READ = "models.read"
    MODELS_DELETE = "models.delete"
    DEPLOYMENTS_READ = "deployments.read"
    DEPLOYMENTS_WRITE = "deployments.write"
    CHAT = "chat"
    USAGE_READ = "usage.read"
    PROJECT_READ = "project.read"


class Role(StrEnum):
    """A named set of permissions that a key or a person carries."""

    OWNER = "owner"


ROLE_PERMISSIONS: dict[Role, frozenset[Permission]] = {
    Role.OWNER: frozenset(Permission),
}


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Holds projects, shared compute and quotas. `location` names the compute target its jobs run on."""

    id: str
    name: str
    display_name: str
    location: str
    created_at: int


@dataclass(frozen=True, kw_only=True)
class Project:
    """The boundary of ownership, keys, quota and filters. `name` is unique in its hub."""

    id: str
    hub_id: str
    name: str
    description: str
    created_at: int


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key as kept: never the secret itself, only its SHA-256.

    prefix: the first characters, so that a person can recognise it. last_four: likewise.
    """

    id: str
    project_id: str
    name: str
    role: Role
    prefix: str
    last_four: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who is calling: the key's id, its role, and the project it acts in."""

    key_id: str
    role: Role
    project: Project

    def may(self, permission: Permission) -> bool:
        """Whether the role grants the permission."""
        return permission in ROLE_PERMISSIONS[self.role]
