"""Queries for the roles that hubs made for themselves, and the way from a role to its word in a row and back."""

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, or_, select, update

from smedje.domain.roles import AnyRole, CustomRole, Permission, Role
from smedje.errors import Conflict
from smedje.store.paging import insert_if_new
from smedje.store.tables import api_keys, assignments, custom_roles

# A space is in no living role's name.
_LIVING = custom_roles.c.name.not_like("% %")


def kept(role: AnyRole) -> str:
    """How rows name a role: a built-in role's word, a custom one's id."""
    return role.id if isinstance(role, CustomRole) else role.value


def role_of(tx: Connection, text: str) -> AnyRole:
    """The role that a row names."""
    if text in set(Role):
        return Role(text)
    return _role(tx.execute(select(custom_roles).where(custom_roles.c.id == text)).one())


def insert_role(tx: Connection, role: CustomRole) -> None:
    """Raises Conflict when the hub has a role of this name."""
    if not insert_if_new(tx, custom_roles, _values(role)):
        raise Conflict(f"The hub already has a role called {role.name}.", code="role_exists", param="name")


def save_role(tx: Connection, role: CustomRole) -> None:
    """Write every field of a role."""
    tx.execute(update(custom_roles).where(custom_roles.c.id == role.id).values(**_values(role)))


def find_role(tx: Connection, hub_id: str, name_or_id: str) -> CustomRole | None:
    """The hub's own role of this name or id."""
    named = (custom_roles.c.name == name_or_id) | (custom_roles.c.id == name_or_id)
    row = tx.execute(select(custom_roles).where(custom_roles.c.hub_id == hub_id, named, _LIVING)).first()
    return None if row is None else _role(row)


def list_roles(tx: Connection, hub_id: str) -> list[CustomRole]:
    """A hub's own roles, oldest first."""
    ours = (custom_roles.c.hub_id == hub_id, _LIVING)
    return [_role(row) for row in tx.execute(select(custom_roles).where(*ours).order_by(custom_roles.c.seq))]


def holders_of(tx: Connection, role_id: str, now: int) -> list[str]:
    """Ids of the members and living keys that have a role."""
    members = tx.execute(select(assignments.c.member_id).where(assignments.c.role == role_id)).scalars()
    unexpired = or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now)
    living = (api_keys.c.role == role_id, api_keys.c.revoked_at.is_(None), unexpired)
    return sorted({*members, *tx.execute(select(api_keys.c.id).where(*living)).scalars()})


def bury_role(tx: Connection, role: CustomRole) -> None:
    """Take a role away. Its row stays, allowing nothing, because ended keys name it; its name is free again."""
    save_role(tx, replace(role, name=f"{role.name} {role.id}", permissions=frozenset()))


def _values(role: CustomRole) -> dict[str, Any]:
    return {**vars(role), "permissions": sorted(one.value for one in role.permissions)}


def _role(row: Row[Any]) -> CustomRole:
    values = row._asdict()
    del values["seq"]
    return CustomRole(**{**values, "permissions": frozenset(Permission(one) for one in row.permissions)})
