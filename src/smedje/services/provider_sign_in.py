"""From somebody whom an identity provider has signed in to a member with a session, and the roles of their groups.

Who signs in for the first time becomes a member without any role, unless an owner has given the address one before or
a group maps to one. Roles that somebody gave stay as they are; mapped ones follow the groups at each sign-in.
"""

from dataclasses import replace

from sqlalchemy import Connection

from smedje.domain.projects import Assignment, Member, MemberKind, Origin, Session
from smedje.errors import AuthenticationFailed, InvalidRequest
from smedje.services.audit import Subject, record
from smedje.services.context import Context
from smedje.services.members import checked_email, new_member
from smedje.services.oidc import Identity, ProviderSettings, refused
from smedje.services.roles import find_role
from smedje.services.sessions import begin
from smedje.store import members as store
from smedje.store import projects as project_rows
from smedje.store.roles import kept


def sign_in(
    ctx: Context, identity: Identity, settings: ProviderSettings, *, previous: str | None
) -> tuple[Session, str]:
    """A new session for this identity, and its secret. previous: secret of the browser's session so far, which ends.

    Raises AuthenticationFailed for an address outside of the allowed domains, one that the provider does not vouch
    for, and a disabled member.
    """
    try:
        with ctx.database.transaction() as tx:
            member = _member(ctx, tx, identity, settings)
            _map_roles(ctx, tx, member, identity, settings)
            return begin(ctx, tx, member, how="provider", previous=previous)
    except AuthenticationFailed:
        with ctx.database.transaction() as tx:
            known = store.find_subject(tx, identity.issuer, identity.subject)
            subject = Subject(id="" if known is None else known.id)
            record(ctx, tx, "sign_in.failed", subject, {"how": "provider"})
        raise


def _member(ctx: Context, tx: Connection, identity: Identity, settings: ProviderSettings) -> Member:
    """The member whom the provider knows by this subject; else the one with this address, from now on known by it."""
    member = store.find_subject(tx, identity.issuer, identity.subject)
    email = identity.email if member is None else identity.email or member.email
    if email is None:
        raise refused("The provider does not vouch for an e-mail address of yours")
    if settings.domains and email.rpartition("@")[2] not in settings.domains:
        raise refused("Addresses of this domain may not sign in here")
    member = member or store.find_member(tx, email)
    if member is None:
        member = replace(_fresh(ctx, identity, email), issuer=identity.issuer, subject=identity.subject)
        store.insert_member(tx, member)
        record(ctx, tx, "user.created", Subject(id=member.id), {"password": 0})
    if member.kind is MemberKind.SERVICE:
        raise refused("Nobody signs in as a service identity")
    if member.disabled_at is not None:
        raise refused("This account is disabled")
    if (member.issuer, member.subject) not in ((None, None), (identity.issuer, identity.subject)):
        raise refused("This address belongs to another account of the provider")
    return replace(member, issuer=identity.issuer, subject=identity.subject)


def _fresh(ctx: Context, identity: Identity, email: str) -> Member:
    try:
        return new_member(checked_email(email), identity.name or None, ctx.seconds())
    except InvalidRequest as problem:
        raise refused("The provider gave an address that cannot be used here") from problem


def _map_roles(ctx: Context, tx: Connection, member: Member, identity: Identity, settings: ProviderSettings) -> None:
    """Give the roles of the groups, the first line that fits for each place, and take back what no longer fits."""
    wanted: dict[str, Assignment] = {}
    for line in settings.roles:
        hub = project_rows.find_hub(tx, line.hub)
        project = None if line.project is None else project_rows.find_project(tx, line.hub, line.project)
        if line.group not in identity.groups or hub is None or (line.project is not None and project is None):
            continue
        place = hub.id if project is None else project.id
        role = find_role(tx, hub.id, line.role)
        wanted.setdefault(
            place,
            Assignment(
                member_id=member.id,
                hub_id=hub.id,
                project_id=None if project is None else project.id,
                role=role,
                created_at=ctx.seconds(),
                origin=Origin.MAPPED,
            ),
        )
    held = {one.project_id or one.hub_id: one for one in store.assignments_of(tx, member.id)}
    for place, assignment in wanted.items():
        before = held.get(place)
        if before is None or (before.origin is Origin.MAPPED and before.role != assignment.role):
            store.put_assignment(tx, assignment)
            _tell(ctx, tx, "member.role_given", assignment)
    for place, before in held.items():
        if before.origin is Origin.MAPPED and place not in wanted:
            store.delete_assignment(tx, member.id, place)
            _tell(ctx, tx, "member.role_taken", before)


def _tell(ctx: Context, tx: Connection, action: str, assignment: Assignment) -> None:
    subject = Subject(id=assignment.member_id, hub_id=assignment.hub_id, project_id=assignment.project_id)
    scope = "hub" if assignment.project_id is None else "project"
    record(ctx, tx, action, subject, {"role": kept(assignment.role), "scope": scope})
