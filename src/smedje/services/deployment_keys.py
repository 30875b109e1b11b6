"""A deployment's two keys: each may ask that deployment and do nothing else, so that it can be given to an application.

Knows slots and secrets; whoever may make keys may make these. One is made anew while clients use the other.
"""

from dataclasses import replace

from smedje.domain.deployments import Deployment, KeySlot
from smedje.domain.projects import ApiKey, Permission, Principal, Role
from smedje.services.access import demand_here
from smedje.services.audit import record_in
from smedje.services.context import Context
from smedje.services.deployments import get_deployment
from smedje.services.projects import described, new_secret, secret_digest
from smedje.store import projects as store


def list_deployment_keys(ctx: Context, caller: Principal, name: str) -> dict[KeySlot, ApiKey | None]:
    """Both slots of a deployment; None for one whose key was never made. Raises NotFound."""
    found = get_deployment(ctx, caller.project, name)
    with ctx.database.transaction() as tx:
        return _slots(store.deployment_keys(tx, caller.project.id, name, now=ctx.seconds()), found)


def make_deployment_key(ctx: Context, caller: Principal, name: str, slot: KeySlot) -> tuple[ApiKey, str]:
    """A new key in a slot and its secret, which nothing can show again; the slot's old key ends at once.

    Raises NotFound, and PermissionDenied for a caller that may not ask deployments itself.
    """
    found = get_deployment(ctx, caller.project, name)
    demand_here(caller, Permission.CHAT)
    secret, now = new_secret(), ctx.seconds()
    label = _label(found, slot)
    key = replace(
        described(caller.project, secret, name=label, now=now, role=Role.AI_DEVELOPER),
        permissions=frozenset({Permission.CHAT}),
        deployment=name,
    )
    with ctx.database.transaction() as tx:
        old = _slots(store.deployment_keys(tx, caller.project.id, name, now=now), found)[slot]
        if old is not None:
            store.revoke_key(tx, caller.project.id, old.id, now)
            record_in(ctx, tx, "key.revoked", caller.project.id, old.id)
        store.insert_key(tx, key, secret_digest(secret))
        record_in(ctx, tx, "key.created", caller.project.id, key.id)
    return key, secret


def _slots(keys: list[ApiKey], deployment: Deployment) -> dict[KeySlot, ApiKey | None]:
    return {slot: next((k for k in keys if k.name == _label(deployment, slot)), None) for slot in KeySlot}


def _label(deployment: Deployment, slot: KeySlot) -> str:
    return f"{deployment.name} ({slot.value})"
