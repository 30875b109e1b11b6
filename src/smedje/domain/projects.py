"""Hubs, projects, members, API keys, roles and permissions. Every other noun belongs to a project, a project to a hub.

Holds the one table of what a role may do; knows nothing of requests or of how keys are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    PROJECT_WRITE = "project.write"
    PROJECTS_CREATE = "projects.create"
    HUBS_READ = "hubs.read"
    HUBS_WRITE = "hubs.write"
    MEMBERS_READ = "members.read"
    MEMBERS_WRITE = "members.write"
    KEYS_READ = "keys.read"
    KEYS_WRITE = "keys.write"
    QUOTAS_READ = "quotas.read"
    QUOTAS_WRITE = "quotas.write"
    PRICES_WRITE = "prices.write"
    AUDIT_READ = "audit.read"


# Asked about a hub, or about all of them: a route lets pass whoever holds one anywhere, its service looks closer.
HUB_LEVEL = frozenset(
    {Permission.PROJECTS_CREATE, Permission.HUBS_READ, Permission.HUBS_WRITE, Permission.PRICES_WRITE}
)


class Role(StrEnum):
    """A named set of permissions that a key or a member carries, after Azure's roles for hubs and projects."""

    OWNER = "owner"
    CONTRIBUTOR = "contributor"
    AI_DEVELOPER = "ai_developer"
    DEPLOYMENT_OPERATOR = "deployment_operator"
    READER = "reader"


ROLE_NAMES: dict[Role, str] = {
    Role.OWNER: "Owner",
    Role.CONTRIBUTOR: "Contributor",
    Role.AI_DEVELOPER: "Azure AI Developer",
    Role.DEPLOYMENT_OPERATOR: "Azure AI Inference Deployment Operator",
    Role.READER: "Reader",
}

_CONTRIBUTOR = frozenset(Permission) - {Permission.MEMBERS_WRITE}
_NOT_DEVELOPER = {
    Permission.HUBS_WRITE,
    Permission.PROJECT_WRITE,
    Permission.KEYS_READ,
    Permission.KEYS_WRITE,
    Permission.QUOTAS_WRITE,
    Permission.PRICES_WRITE,
    Permission.AUDIT_READ,
}
_NOT_READER = {Permission.KEYS_READ, Permission.AUDIT_READ}

# Azure's documents: an Owner may do all; a Contributor all but decide who may; a Developer builds but manages neither
# hubs nor keys; an Operator creates deployments; a Reader reads.
ROLE_PERMISSIONS: dict[Role, frozenset[Permission]] = {
    Role.OWNER: frozenset(Permission),
    Role.CONTRIBUTOR: _CONTRIBUTOR,
    Role.AI_DEVELOPER: _CONTRIBUTOR - _NOT_DEVELOPER,
    Role.DEPLOYMENT_OPERATOR: frozenset(
        {
            Permission.DEPLOYMENTS_READ,
            Permission.DEPLOYMENTS_WRITE,
            Permission.MODELS_READ,
            Permission.PROJECT_READ,
            Permission.HUBS_READ,
        }
    ),
    Role.READER: frozenset(one for one in Permission if one.value.endswith(".read")) - _NOT_READER,
}


class Scope(StrEnum):
    """How far a role reaches: one project, a hub with all its projects, or the whole server."""

    PROJECT = "project"
    HUB = "hub"
    SERVER = "server"


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Holds projects, shared compute and quotas. `location` names the compute target its jobs run on.

    subscription, resource_group: whose account it is, for showing costs; free text. ai_services, search: names of the
    connections, None when skipped. A deleted hub keeps its row, because usage and audit refer to it.
    """

    id: str
    name: str
    display_name: str
    location: str
    created_at: int
    description: str = ""
    subscription: str = ""
    resource_group: str = ""
    ai_services: str | None = None
    search: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    archived_at: int | None = None
    deleted_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Project:
    """The boundary of ownership, keys, quota and filters. `name` is unique in its hub. An archived one is read-only."""

    id: str
    hub_id: str
    name: str
    description: str
    created_at: int
    display_name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    archived_at: int | None = None
    deleted_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Member:
    """A person, known by e-mail address; what they may do stands in their assignments."""

    id: str
    email: str
    name: str
    created_at: int


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A member's role in a project, or (project_id None) in a hub and all its projects."""

    member_id: str
    hub_id: str
    project_id: str | None
    role: Role
    created_at: int


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key as kept: never the secret itself, only its SHA-256.

    prefix: the first characters, so that a person can recognise it. last_four: likewise.
    scope: how far its role reaches; project_id says which project or hub, and where the key acts by itself.
    member_id: whose it is; the key then does nothing that the member may not do. permissions: narrower than its role.
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
    scope: Scope = Scope.PROJECT
    member_id: str | None = None
    permissions: frozenset[Permission] | None = None
    last_used_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Grant:
    """A role and where it holds. hub_id None: everywhere. project_id None: in the whole hub."""

    role: Role
    hub_id: str | None = None
    project_id: str | None = None

    def covers(self, hub_id: str | None, project_id: str | None = None) -> bool:
        """Whether it holds in a project, in a hub as a whole (no project_id), or for the server (neither)."""
        if self.hub_id is None:
            return True
        return self.hub_id == hub_id and self.project_id in (None, project_id)


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who is calling: the key's id and role, the project it acts in, and where its roles hold.

    role: what the key itself allows, the ceiling of everything. grants: None means this role in this project.
    narrowed: the only permissions that the key was given, None for all of its role.
    """

    key_id: str
    role: Role
    project: Project
    grants: tuple[Grant, ...] | None = None
    narrowed: frozenset[Permission] | None = None
    member_id: str | None = None

    def may(self, permission: Permission) -> bool:
        """Whether the caller holds the permission in the project it acts in."""
        return self.may_in(permission, self.project.hub_id, self.project.id)

    def may_in(self, permission: Permission, hub_id: str | None, project_id: str | None = None) -> bool:
        """Whether the caller holds the permission in a project, a hub, or (neither given) for the whole server."""
        return self._key_allows(permission) and any(
            permission in ROLE_PERMISSIONS[grant.role] for grant in self._grants() if grant.covers(hub_id, project_id)
        )

    def may_somewhere(self, permission: Permission) -> bool:
        """Whether there is any place in which the caller holds the permission."""
        return self._key_allows(permission) and any(
            permission in ROLE_PERMISSIONS[grant.role] for grant in self._grants()
        )

    def knows_hub(self, hub_id: str) -> bool:
        """Whether the caller has any role in the hub or in one of its projects."""
        return any(grant.hub_id in (None, hub_id) for grant in self._grants())

    def role_names(self, hub_id: str | None, project_id: str | None = None) -> str:
        """The caller's roles there, in words."""
        found = {grant.role for grant in self._grants() if grant.covers(hub_id, project_id)}
        return " and ".join(ROLE_NAMES[role] for role in Role if role in found) or "none"

    def _grants(self) -> tuple[Grant, ...]:
        if self.grants is not None:
            return self.grants
        return (Grant(role=self.role, hub_id=self.project.hub_id, project_id=self.project.id),)

    def _key_allows(self, permission: Permission) -> bool:
        allowed = permission in ROLE_PERMISSIONS[self.role]
        return allowed and (self.narrowed is None or permission in self.narrowed)


def holders(permission: Permission) -> str:
    """The roles that have a permission, in words."""
    names = [ROLE_NAMES[role] for role in Role if permission in ROLE_PERMISSIONS[role]]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
