"""API keys: making, listing, rotating and revoking them by someone who may. No key is stronger than its maker.

Knows who may; how secrets look and how a caller is found by one stands in `services/projects.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from smedje.domain.projects import ApiKey, Permission, Principal, Scope
from smedje.domain.roles import permissions_of, role_title
from smedje.errors import Conflict, InvalidRequest, NotFound, PermissionDenied
from smedje.services.access import demand
from smedje.services.audit import record_in
from smedje.services.context import Context
from smedje.services.hubs import clean_text
from smedje.services.members import member_here
from smedje.services.projects import described, new_secret, secret_digest
from smedje.services.roles import find_role
from smedje.store import projects as store

GRACE_SECONDS = 24 * 3600
LONGEST_GRACE = 30 * 24 * 3600
LONGEST_LIFE = 10 * 365 * 24 * 3600
LONGEST_NAME = 100


@dataclass(frozen=True, kw_only=True)
class KeyForm:
    """What a caller says about a new key.

    role: a built-in role's word or the name of one of the hub's own, None for the member's own role.
    member: address or id of whose key it is, None for a service without a name of its own.
    permissions: narrower than the role. lifetime: seconds.
    """

    name: str
    role: str | None = None
    scope: Scope = Scope.PROJECT
    member: str | None = None
    permissions: Sequence[str] | None = None
    lifetime: int | None = None


def list_keys(ctx: Context, caller: Principal) -> list[ApiKey]:
    """The project's keys, newest first; revoked and expired ones too."""
    with ctx.database.transaction() as tx:
        return store.list_keys(tx, caller.project.id)


def create_key(ctx: Context, caller: Principal, form: KeyForm) -> tuple[ApiKey, str]:
    """A new key of the caller's project and its secret, which nothing can show again.

    Raises InvalidRequest, NotFound for an unknown member, PermissionDenied for a key that could do more than its maker.
    """
    narrowed = None if form.permissions is None else frozenset(_permission(one) for one in form.permissions)
    _check_lifetime(form.lifetime)
    if not form.name.strip() or len(form.name) > LONGEST_NAME:
        raise InvalidRequest(
            f"A key needs a name of 1 to {LONGEST_NAME} characters.", code="invalid_value", param="name"
        )
    secret, now = new_secret(), ctx.seconds()
    with ctx.database.transaction() as tx:
        owner = None if form.member is None else member_here(tx, caller, form.member)
        if form.role is None and owner is None:
            raise InvalidRequest("A key without a member needs a role.", code="missing_field", param="role")
        role = (
            owner.assignment.role if owner and not form.role else find_role(tx, caller.project.hub_id, form.role or "")
        )
        key = replace(
            described(caller.project, secret, name=clean_text(form.name, "name"), now=now, role=role),
            expires_at=None if form.lifetime is None else now + form.lifetime,
            scope=form.scope,
            member_id=None if owner is None else owner.member.id,
            permissions=narrowed,
        )
        _refuse_stronger(caller, key)
        store.insert_key(tx, key, secret_digest(secret))
        record_in(ctx, tx, "key.created", caller.project.id, key.id)
    return key, secret


def rotate_key(
    ctx: Context, caller: Principal, key_id: str, *, grace_seconds: int = GRACE_SECONDS
) -> tuple[ApiKey, str]:
    """A new key like the old one, which goes on working for the grace period, so that no request is dropped.

    Raises NotFound, Conflict for a key that has ended, PermissionDenied for one that is stronger than the caller.
    """
    if not 0 <= grace_seconds <= LONGEST_GRACE:
        raise InvalidRequest(
            f"grace_seconds must lie between 0 and {LONGEST_GRACE}, found {grace_seconds}.",
            code="invalid_value",
            param="grace_seconds",
        )
    secret, now = new_secret(), ctx.seconds()
    with ctx.database.transaction() as tx:
        old = store.get_key(tx, caller.project.id, key_id)
        if old is None:
            raise _no_key(key_id)
        _refuse_stronger(caller, old)
        if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
            raise Conflict(f"The key {key_id} has ended; make a new one.", code="key_ended")
        like = described(caller.project, secret, name=old.name, now=now, role=old.role)
        lifetime = None if old.expires_at is None else old.expires_at - old.created_at
        key = replace(
            like,
            scope=old.scope,
            member_id=old.member_id,
            permissions=old.permissions,
            deployment=old.deployment,
            expires_at=None if lifetime is None else now + lifetime,
        )
        store.insert_key(tx, key, secret_digest(secret))
        store.end_key(tx, old.id, now + grace_seconds)
        record_in(ctx, tx, "key.rotated", caller.project.id, old.id)
        record_in(ctx, tx, "key.created", caller.project.id, key.id)
    return key, secret


def revoke_key(ctx: Context, caller: Principal, key_id: str) -> None:
    """End a key at once. Raises NotFound, and PermissionDenied for a key that is stronger than the caller."""
    with ctx.database.transaction() as tx:
        key = store.get_key(tx, caller.project.id, key_id)
        if key is None:
            raise _no_key(key_id)
        _refuse_stronger(caller, key)
        store.revoke_key(tx, caller.project.id, key_id, ctx.seconds())
        record_in(ctx, tx, "key.revoked", caller.project.id, key_id)


def _refuse_stronger(caller: Principal, key: ApiKey) -> None:
    """Raises PermissionDenied for a key that would allow something that the caller may not do."""
    hub_id = caller.project.hub_id if key.scope is not Scope.SERVER else None
    project_id = caller.project.id if key.scope is Scope.PROJECT else None
    demand(caller, Permission.KEYS_WRITE, hub_id=hub_id, project_id=project_id)
    wanted = permissions_of(key.role)
    wanted = wanted if key.permissions is None else wanted & key.permissions
    beyond = sorted(one.value for one in wanted if not caller.may_in(one, hub_id, project_id))
    if beyond:
        raise PermissionDenied(
            f"The role {role_title(key.role)} includes {beyond[0]}, which you do not have yourself. No key may be "
            "stronger than whoever makes, rotates or revokes it. Ask an owner.",
            code="key_too_strong",
            param="role",
        )


def _permission(text: str) -> Permission:
    try:
        return Permission(text)
    except ValueError:
        listed = ", ".join(Permission)
        raise InvalidRequest(
            f"There is no permission {text[:60]!r}. Permissions: {listed}.", code="invalid_value", param="permissions"
        ) from None


def _check_lifetime(seconds: int | None) -> None:
    if seconds is not None and not 1 <= seconds <= LONGEST_LIFE:
        raise InvalidRequest(
            f"expires_in must lie between 1 and {LONGEST_LIFE} seconds, found {seconds}.",
            code="invalid_value",
            param="expires_in",
        )


def _no_key(key_id: str) -> NotFound:
    return NotFound(f"No API key {key_id[:100]} in this project.", code="key_not_found", param="key_id")
