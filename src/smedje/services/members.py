"""Members: people and service identities known by their address, and the one role that each has in a project or hub."""

import re
from dataclasses import dataclass

from sqlalchemy import Connection

from smedje.domain.ids import MEMBER, new_id
from smedje.domain.projects import Assignment, Member, MemberKind, Permission, Principal, Scope
from smedje.errors import InvalidRequest, NotFound
from smedje.services.access import demand
from smedje.services.audit import Subject, record
from smedje.services.context import Context
from smedje.services.hubs import clean_text
from smedje.services.roles import find_role, refuse_stronger
from smedje.store import members as store
from smedje.store.roles import kept

EMAIL = re.compile(r"[^@\s<>\"]{1,64}@[A-Za-z0-9.-]{1,190}\Z")
# An address here is a service identity's: keys belong to it and nobody signs in as one. No mail can arrive there.
SERVICE_DOMAIN = "services.internal"


@dataclass(frozen=True, kw_only=True)
class MemberRole:
    """A member, the role, and where it holds."""

    member: Member
    assignment: Assignment

    @property
    def scope(self) -> Scope:
        """Whether the role is for the project alone or for its hub."""
        return Scope.PROJECT if self.assignment.project_id is not None else Scope.HUB


def list_members(ctx: Context, caller: Principal) -> list[MemberRole]:
    """Who has a role in the caller's project or its hub, by address."""
    with ctx.database.transaction() as tx:
        found = store.list_members(tx, [caller.project.id, caller.project.hub_id])
    return [MemberRole(member=member, assignment=assignment) for member, assignment in found]


def put_member(
    ctx: Context, caller: Principal, email_or_id: str, *, role: str, scope: Scope, name: str | None = None
) -> MemberRole:
    """Give a member a role in the caller's project or its hub, in the stead of the one held there before.

    role: a built-in role's word, or the name or id of one of the hub's own. An address that is not known yet becomes a
    member. Needs members.write there, and all that the role and the one before allow.
    """
    hub_id, project_id = _place(caller, scope)
    demand(caller, Permission.MEMBERS_WRITE, hub_id=hub_id, project_id=project_id)
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        wanted = find_role(tx, hub_id, role)
        refuse_stronger(caller, wanted, hub_id, project_id)
        member = store.find_member(tx, email_or_id.lower() if "@" in email_or_id else email_or_id)
        if member is None:
            member = new_member(checked_email(email_or_id), name, now)
            store.insert_member(tx, member)
        before = store.find_assignment(tx, member.id, project_id or hub_id)
        if before is not None:
            refuse_stronger(caller, before.role, hub_id, project_id)
        assignment = Assignment(member_id=member.id, hub_id=hub_id, project_id=project_id, role=wanted, created_at=now)
        store.put_assignment(tx, assignment)
        subject = Subject(id=member.id, hub_id=hub_id, project_id=caller.project.id)
        record(ctx, tx, "member.role_given", subject, {"role": kept(wanted), "scope": scope.value})
    return MemberRole(member=member, assignment=assignment)


def remove_member(ctx: Context, caller: Principal, email_or_id: str, *, scope: Scope) -> Member:
    """Take a member's role in the caller's project or its hub back; keys that rest on it stop working at once.

    Needs members.write there, and all that the role allows. Raises NotFound when there is no such role.
    """
    hub_id, project_id = _place(caller, scope)
    demand(caller, Permission.MEMBERS_WRITE, hub_id=hub_id, project_id=project_id)
    place = project_id or hub_id
    with ctx.database.transaction() as tx:
        member = store.find_member(tx, email_or_id.lower() if "@" in email_or_id else email_or_id)
        held = None if member is None else store.find_assignment(tx, member.id, place)
        if member is None or held is None:
            raise no_member(email_or_id, scope)
        refuse_stronger(caller, held.role, hub_id, project_id)
        store.delete_assignment(tx, member.id, place)
        subject = Subject(id=member.id, hub_id=hub_id, project_id=caller.project.id)
        record(ctx, tx, "member.role_taken", subject, {"role": kept(held.role), "scope": scope.value})
    return member


def new_member(email: str, name: str | None, now: int) -> Member:
    """A member who is not known yet; a service identity when the address says so."""
    local, _, domain = email.partition("@")
    kind = MemberKind.SERVICE if domain == SERVICE_DOMAIN else MemberKind.PERSON
    return Member(id=new_id(MEMBER), email=email, name=clean_text(name or local, "name"), created_at=now, kind=kind)


def member_here(tx: Connection, caller: Principal, email_or_id: str) -> MemberRole:
    """A member with a role in the caller's project, that of the project before that of the hub. Raises NotFound."""
    found = [
        MemberRole(member=member, assignment=assignment)
        for member, assignment in store.list_members(tx, [caller.project.id, caller.project.hub_id])
        if email_or_id.lower() in (member.email, member.id.lower())
    ]
    if not found:
        raise no_member(email_or_id, Scope.PROJECT)
    return min(found, key=lambda one: one.scope is Scope.HUB)


def no_member(email_or_id: str, scope: Scope) -> NotFound:
    """The error for a person without a role there, whether known elsewhere or not."""
    return NotFound(
        f"{email_or_id[:100]!r} has no role in this {scope.value}.", code="member_not_found", param="member"
    )


def _place(caller: Principal, scope: Scope) -> tuple[str, str | None]:
    if scope is Scope.SERVER:
        raise InvalidRequest(
            "Members have roles in a project or a hub; server-wide roles are for keys.",
            code="invalid_value",
            param="scope",
        )
    return caller.project.hub_id, caller.project.id if scope is Scope.PROJECT else None


def checked_email(text: str) -> str:
    """An address as it is kept. Raises InvalidRequest for what is none."""
    if not EMAIL.match(text) or not text.isascii():
        raise InvalidRequest(
            f"{text[:100]!r} is no e-mail address. Members are known by one, such as ada@example.org.",
            code="invalid_email",
            param="member",
        )
    return text.lower()
