"""Hubs, projects, members, API keys, and who is calling. Every other noun belongs to a project, a project to a hub.

Knows where roles hold; what they allow stands in `roles.py`. Knows nothing of requests or of how keys are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from smedje.domain.roles import HUB_LEVEL as HUB_LEVEL
from smedje.domain.roles import ROLE_NAMES as ROLE_NAMES
from smedje.domain.roles import ROLE_PERMISSIONS as ROLE_PERMISSIONS
from smedje.domain.roles import AnyRole, permissions_of, role_title
from smedje.domain.roles import Permission as Permission
from smedje.domain.roles import Role as Role
from smedje.domain.roles import holders as holders


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


class MemberKind(StrEnum):
    """Whether somebody can sign in with it, or only keys belong to it."""

    PERSON = "person"
    SERVICE = "service"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A person or a service identity, known by an address; what they may do stands in their assignments.

    issuer, subject: how an identity provider knows the person, once they have signed in by it. A disabled member can
    neither sign in nor use a key.
    """

    id: str
    email: str
    name: str
    created_at: int
    kind: MemberKind = MemberKind.PERSON
    issuer: str | None = None
    subject: str | None = None
    disabled_at: int | None = None
    last_sign_in_at: int | None = None


class Origin(StrEnum):
    """Where a role comes from: somebody gave it, or an identity provider's groups map to it."""

    GIVEN = "given"
    MAPPED = "mapped"


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A member's role in a project, or (project_id None) in a hub and all its projects."""

    member_id: str
    hub_id: str
    project_id: str | None
    role: AnyRole
    created_at: int
    origin: Origin = Origin.GIVEN


@dataclass(frozen=True, kw_only=True)
class Session:
    """Somebody who is signed in with a browser. The cookie's secret is kept only as its SHA-256, and not here.

    project_id: where the session acts when a request does not say.
    """

    id: str
    member_id: str
    project_id: str | None
    created_at: int
    expires_at: int
    last_used_at: int
    ended_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key as kept: never the secret itself, only its SHA-256.

    prefix: the first characters, so that a person can recognise it. last_four: likewise.
    scope: how far its role reaches; project_id says which project or hub, and where the key acts by itself.
    member_id: whose it is; the key then does nothing that the member may not do. permissions: narrower than its role.
    deployment: the name of the only deployment that it may ask, None for no such limit.
    """

    id: str
    project_id: str
    name: str
    role: AnyRole
    prefix: str
    last_four: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    scope: Scope = Scope.PROJECT
    member_id: str | None = None
    permissions: frozenset[Permission] | None = None
    last_used_at: int | None = None
    deployment: str | None = None


@dataclass(frozen=True, kw_only=True)
class Grant:
    """A role and where it holds. hub_id None: everywhere. project_id None: in the whole hub."""

    role: AnyRole
    hub_id: str | None = None
    project_id: str | None = None

    def covers(self, hub_id: str | None, project_id: str | None = None) -> bool:
        """Whether it holds in a project, in a hub as a whole (no project_id), or for the server (neither)."""
        if self.hub_id is None:
            return True
        return self.hub_id == hub_id and self.project_id in (None, project_id)


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who is calling: the id of the key or browser session, its role, the project it acts in, where its roles hold.

    role: what the key itself allows, the ceiling of everything. grants: None means this role in this project.
    narrowed: the only permissions that the key was given, None for all of its role. deployment: the only one that the
    key may ask, None for no such limit.
    """

    key_id: str
    role: AnyRole
    project: Project
    grants: tuple[Grant, ...] | None = None
    narrowed: frozenset[Permission] | None = None
    member_id: str | None = None
    deployment: str | None = None

    def may(self, permission: Permission) -> bool:
        """Whether the caller holds the permission in the project it acts in."""
        return self.may_in(permission, self.project.hub_id, self.project.id)

    def may_in(self, permission: Permission, hub_id: str | None, project_id: str | None = None) -> bool:
        """Whether the caller holds the permission in a project, a hub, or (neither given) for the whole server."""
        return self._key_allows(permission) and any(
            permission in permissions_of(grant.role) for grant in self._grants() if grant.covers(hub_id, project_id)
        )

    def may_somewhere(self, permission: Permission) -> bool:
        """Whether there is any place in which the caller holds the permission."""
        return self._key_allows(permission) and any(
            permission in permissions_of(grant.role) for grant in self._grants()
        )

    def knows_hub(self, hub_id: str) -> bool:
        """Whether the caller has any role in the hub or in one of its projects."""
        return any(grant.hub_id in (None, hub_id) for grant in self._grants())

    def role_names(self, hub_id: str | None, project_id: str | None = None) -> str:
        """The caller's roles there, in words."""
        found = {grant.role for grant in self._grants() if grant.covers(hub_id, project_id)}
        order = [*(role for role in Role if role in found), *sorted(found - set(Role), key=role_title)]
        return " and ".join(role_title(role) for role in order) or "none"

    def _grants(self) -> tuple[Grant, ...]:
        if self.grants is not None:
            return self.grants
        return (Grant(role=self.role, hub_id=self.project.hub_id, project_id=self.project.id),)

    def _key_allows(self, permission: Permission) -> bool:
        allowed = permission in permissions_of(self.role)
        return allowed and (self.narrowed is None or permission in self.narrowed)
