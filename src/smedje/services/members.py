"""Members: people known by their address, and the one role that each has in a project or a hub."""

import re
from dataclasses import dataclass

from sqlalchemy import Connection

from smedje.domain.ids import MEMBER, new_id
from smedje.domain.projects import Assignment, Member, Permission, Principal, Role, Scope
from smedje.errors import InvalidRequest, NotFound
from smedje.services.access import demand
from smedje.services.audit import Subject, record
from smedje.services.context import Context
from smedje.services.hubs import clean_text
from smedje.store import members as store

EMAIL = re.compile(r"[^@\s<>\"]{1,64}@[A-Za-z0-9.-]{1,190}\Z")


@dataclass(frozen=True, kw_only=True)
class MemberRole:
    """A person, the role, and where it holds."""

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
    ctx: Context, caller: Principal, email_or_id: str, *, role: Role, scope: Scope, name: str | None = None
) -> MemberRole:
    """Give a person a role in the caller's project or its hub, in the stead of the one held there before.

    An address that is not known yet becomes a member. Needs members.write there.
    """
    hub_id, project_id = _place(caller, scope)
    demand(caller, Permission.MEMBERS_WRITE, hub_id=hub_id, project_id=project_id)
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        member = store.find_member(tx, email_or_id)
        if member is None:
            email = _email(email_or_id)
            member = Member(
                id=new_id(MEMBER), email=email, name=clean_text(name or email.split("@")[0], "name"), created_at=now
            )
            store.insert_member(tx, member)
        assignment = Assignment(member_id=member.id, hub_id=hub_id, project_id=project_id, role=role, created_at=now)
        store.put_assignment(tx, assignment)
        subject = Subject(id=member.id, hub_id=hub_id, project_id=caller.project.id)
        record(ctx, tx, "member.role_given", subject, {"role": role.value, "scope": scope.value})
    return MemberRole(member=member, assignment=assignment)


def remove_member(ctx: Context, caller: Principal, email_or_id: str, *, scope: Scope) -> Member:
    """Take a person's role in the caller's project or its hub back; keys that rest on it stop working at once.

    Needs members.write there. Raises NotFound when there is no such role.
    """
    hub_id, project_id = _place(caller, scope)
    demand(caller, Permission.MEMBERS_WRITE, hub_id=hub_id, project_id=project_id)
    with ctx.database.transaction() as tx:
        member = store.find_member(tx, email_or_id)
        if member is None or not store.delete_assignment(tx, member.id, project_id or hub_id):
            raise no_member(email_or_id, scope)
        subject = Subject(id=member.id, hub_id=hub_id, project_id=caller.project.id)
        record(ctx, tx, "member.role_taken", subject, {"scope": scope.value})
    return member


def member_here(tx: Connection, caller: Principal, email_or_id: str) -> MemberRole:
    """A person with a role in the caller's project, that of the project before that of the hub. Raises NotFound."""
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


def _email(text: str) -> str:
    if not EMAIL.match(text) or not text.isascii():
        raise InvalidRequest(
            f"{text[:100]!r} is no e-mail address. Members are known by one, such as ada@example.org.",
            code="invalid_email",
            param="member",
        )
    return text.lower()
