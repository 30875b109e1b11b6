"""Permissions, the roles that Azure has, and roles of a hub's own making: what a caller may do.

Holds the one table of what a role may do; knows nothing of who has which role where.
"""

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
    PROJECT_WRITE = "project.write"
    PROJECTS_CREATE = "projects.create"
    HUBS_READ = "hubs.read"
    HUBS_WRITE = "hubs.write"
    MEMBERS_READ = "members.read"
    MEMBERS_WRITE = "members.write"
    USERS_READ = "users.read"
    USERS_WRITE = "users.write"
    KEYS_READ = "keys.read"
    KEYS_WRITE = "keys.write"
    QUOTAS_READ = "quotas.read"
    QUOTAS_WRITE = "quotas.write"
    PRICES_WRITE = "prices.write"
    AUDIT_READ = "audit.read"
    WEBHOOKS_READ = "webhooks.read"
    WEBHOOKS_WRITE = "webhooks.write"
    ERASURES_READ = "erasures.read"
    ERASURES_WRITE = "erasures.write"


# Asked about a hub, or about all of them: a route lets pass whoever holds one anywhere, its service looks closer.
HUB_LEVEL = frozenset(
    {
        Permission.PROJECTS_CREATE,
        Permission.HUBS_READ,
        Permission.HUBS_WRITE,
        Permission.PRICES_WRITE,
        Permission.USERS_READ,
        Permission.USERS_WRITE,
    }
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

# Whoever may set passwords may become anyone.
_CONTRIBUTOR = frozenset(Permission) - {Permission.MEMBERS_WRITE, Permission.USERS_WRITE}
_NOT_DEVELOPER = {
    Permission.HUBS_WRITE,
    Permission.PROJECT_WRITE,
    Permission.KEYS_READ,
    Permission.KEYS_WRITE,
    Permission.QUOTAS_WRITE,
    Permission.PRICES_WRITE,
    Permission.AUDIT_READ,
    Permission.ERASURES_WRITE,
    Permission.USERS_READ,
}
_NOT_READER = {Permission.KEYS_READ, Permission.AUDIT_READ, Permission.USERS_READ}

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


@dataclass(frozen=True, kw_only=True)
class CustomRole:
    """A role that a hub made for itself: a name for a set of permissions. Known in its hub and the hub's projects."""

    id: str
    hub_id: str
    name: str
    description: str
    permissions: frozenset[Permission]
    created_at: int


AnyRole = Role | CustomRole


def permissions_of(role: AnyRole) -> frozenset[Permission]:
    """What a role allows."""
    return role.permissions if isinstance(role, CustomRole) else ROLE_PERMISSIONS[role]


def role_word(role: AnyRole) -> str:
    """The word by which a role is asked for: `ai_developer`, or the name that the hub gave it."""
    return role.name if isinstance(role, CustomRole) else role.value


def role_title(role: AnyRole) -> str:
    """A role's name for people: `Azure AI Developer`."""
    return role.name if isinstance(role, CustomRole) else ROLE_NAMES[role]


def holders(permission: Permission) -> str:
    """The roles that have a permission, in words."""
    names = [ROLE_NAMES[role] for role in Role if permission in ROLE_PERMISSIONS[role]]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
