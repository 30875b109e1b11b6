"""Roles of a hub's own making: named sets of permissions, given at the hub or in its projects.

No role allows what its maker, or whoever gives it, may not do.
"""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from smedje.domain.ids import ROLE, new_id
from smedje.domain.projects import Principal
from smedje.domain.roles import ROLE_NAMES, AnyRole, CustomRole, Permission, Role, permissions_of, role_title
from smedje.errors import Conflict, InvalidRequest, NotFound, PermissionDenied
from smedje.services.access import demand
from smedje.services.audit import Subject, record
from smedje.services.context import Context
from smedje.services.hubs import NAME, clean_text
from smedje.store import roles as store

RESERVED = frozenset(word.lower() for role, title in ROLE_NAMES.items() for word in (role.value, title))


def list_roles(ctx: Context, caller: Principal) -> list[AnyRole]:
    """The built-in roles, and those of the caller's hub."""
    with ctx.database.transaction() as tx:
        return [*Role, *store.list_roles(tx, caller.project.hub_id)]


def create_role(
    ctx: Context, caller: Principal, *, name: str, description: str, permissions: Sequence[str]
) -> CustomRole:
    """A new role of the caller's hub. Needs members.write in the hub.

    Raises InvalidRequest, Conflict for a name in use, PermissionDenied for what the caller may not do in the hub.
    """
    hub_id = caller.project.hub_id
    demand(caller, Permission.MEMBERS_WRITE, hub_id=hub_id)
    if not NAME.match(name) or name.lower() in RESERVED:
        raise InvalidRequest(
            f"{name[:100]!r} cannot name a role. Use 1 to 64 letters, digits, '_' or '-', and no built-in role's name.",
            code="invalid_name",
            param="name",
        )
    role = CustomRole(
        id=new_id(ROLE),
        hub_id=hub_id,
        name=name,
        description=clean_text(description, "description"),
        permissions=_permissions(permissions),
        created_at=ctx.seconds(),
    )
    refuse_stronger(caller, role, hub_id, None)
    with ctx.database.transaction() as tx:
        store.insert_role(tx, role)
        record(ctx, tx, "role.created", Subject(id=role.id, hub_id=hub_id), {"permissions": _listed(role)})
    return role


def update_role(
    ctx: Context,
    caller: Principal,
    name_or_id: str,
    *,
    description: str | None = None,
    permissions: Sequence[str] | None = None,
) -> CustomRole:
    """A role that means something else from now on, for everyone who has it. Raises as `create_role` does."""
    hub_id = caller.project.hub_id
    demand(caller, Permission.MEMBERS_WRITE, hub_id=hub_id)
    with ctx.database.transaction() as tx:
        role = _own_role(tx, caller, name_or_id)
        refuse_stronger(caller, role, hub_id, None)
        changed = replace(
            role,
            description=role.description if description is None else clean_text(description, "description"),
            permissions=role.permissions if permissions is None else _permissions(permissions),
        )
        refuse_stronger(caller, changed, hub_id, None)
        store.save_role(tx, changed)
        record(ctx, tx, "role.updated", Subject(id=role.id, hub_id=hub_id), {"permissions": _listed(changed)})
    return changed


def delete_role(ctx: Context, caller: Principal, name_or_id: str) -> CustomRole:
    """Take a role away. Raises Conflict while somebody has it."""
    hub_id = caller.project.hub_id
    demand(caller, Permission.MEMBERS_WRITE, hub_id=hub_id)
    with ctx.database.transaction() as tx:
        role = _own_role(tx, caller, name_or_id)
        refuse_stronger(caller, role, hub_id, None)
        having = store.holders_of(tx, role.id, ctx.seconds())
        if having:
            raise Conflict(
                f"The role {role.name} is held by {', '.join(having[:10])}. Give them another role first.",
                code="role_in_use",
            )
        store.bury_role(tx, role)
        record(ctx, tx, "role.deleted", Subject(id=role.id, hub_id=hub_id))
    return role


def find_role(tx: Connection, hub_id: str, word: str) -> AnyRole:
    """The built-in role of this word, or the hub's own of this name or id. Raises InvalidRequest."""
    if word in set(Role):
        return Role(word)
    found = store.find_role(tx, hub_id, word)
    if found is None:
        own = [role.name for role in store.list_roles(tx, hub_id)]
        raise InvalidRequest(
            f"There is no role {word[:100]!r} here. Roles: {', '.join([*Role, *own])}.",
            code="unknown_role",
            param="role",
        )
    return found


def refuse_stronger(caller: Principal, role: AnyRole, hub_id: str, project_id: str | None) -> None:
    """Raises PermissionDenied for a role that allows something there that the caller may not do."""
    beyond = sorted(one.value for one in permissions_of(role) if not caller.may_in(one, hub_id, project_id))
    if beyond:
        raise PermissionDenied(
            f"The role {role_title(role)} includes {beyond[0]}, which you do not have "
            f"{'in this project' if project_id else 'in this hub'}. Nobody makes, gives or takes a role that is "
            "stronger than their own. Ask an owner.",
            code="role_too_strong",
            param="role",
        )


def _own_role(tx: Connection, caller: Principal, name_or_id: str) -> CustomRole:
    found = store.find_role(tx, caller.project.hub_id, name_or_id)
    if found is None:
        raise NotFound(f"This hub has no role {name_or_id[:100]!r} of its own.", code="role_not_found", param="role")
    return found


def _permissions(words: Sequence[str]) -> frozenset[Permission]:
    unknown = [word for word in words if word not in set(Permission)]
    if unknown or not words:
        problem = f"There is no permission {unknown[0][:60]!r}." if unknown else "A role allows at least one thing."
        raise InvalidRequest(
            f"{problem} Permissions: {', '.join(Permission)}.", code="invalid_value", param="permissions"
        )
    return frozenset(Permission(word) for word in words)


def _listed(role: CustomRole) -> str:
    return " ".join(sorted(role.permissions))
