"""Queries for members, how they sign in, and the roles that they have been given."""

from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update

from smedje.domain.projects import Assignment, Member, MemberKind, Origin
from smedje.store.paging import Listing, insert_if_new, page
from smedje.store.roles import kept, role_of
from smedje.store.tables import assignments, members

NAMES = tuple(one.name for one in fields(Member))


def insert_member(tx: Connection, member: Member) -> bool:
    """Record a member; False when the address is known already."""
    return insert_if_new(tx, members, asdict(member))


def save_member(tx: Connection, member: Member) -> None:
    """Write every field of a member."""
    tx.execute(update(members).where(members.c.id == member.id).values(**asdict(member)))


def find_member(tx: Connection, email_or_id: str) -> Member | None:
    """The member with this address or id."""
    column = members.c.email if "@" in email_or_id else members.c.id
    row = tx.execute(select(members).where(column == email_or_id)).first()
    return None if row is None else _member(row)


def find_subject(tx: Connection, issuer: str, subject: str) -> Member | None:
    """The member whom an identity provider knows by this subject."""
    row = tx.execute(select(members).where(members.c.issuer == issuer, members.c.subject == subject)).first()
    return None if row is None else _member(row)


def page_members(tx: Connection, *, after: str | None, limit: int) -> list[tuple[Member, bool]]:
    """At most `limit` members of the whole server, newest first, and whether each has a password."""
    rows = page(tx, Listing(table=members, scope=[]), after=after, limit=limit)
    return [(_member(row), row.password_hash is not None) for row in rows]


def password_of(tx: Connection, member_id: str) -> str | None:
    """The hash of a member's password, None for one who has none."""
    return tx.scalar(select(members.c.password_hash).where(members.c.id == member_id))


def set_password(tx: Connection, member_id: str, password_hash: str | None) -> None:
    """Keep the hash of a new password; None takes the password away."""
    tx.execute(update(members).where(members.c.id == member_id).values(password_hash=password_hash))


def put_assignment(tx: Connection, assignment: Assignment) -> None:
    """Give a member a role in a place, in the stead of the one held there before."""
    place = assignment.project_id or assignment.hub_id
    delete_assignment(tx, assignment.member_id, place)
    tx.execute(assignments.insert().values(**{**vars(assignment), "role": kept(assignment.role), "scope_id": place}))


def delete_assignment(tx: Connection, member_id: str, scope_id: str) -> bool:
    """Take a role back; whether there was one. scope_id: the project's or the hub's id."""
    found = (assignments.c.member_id == member_id, assignments.c.scope_id == scope_id)
    return tx.execute(delete(assignments).where(*found)).rowcount > 0


def find_assignment(tx: Connection, member_id: str, scope_id: str) -> Assignment | None:
    """The role that a member has in a project or a hub itself."""
    found = (assignments.c.member_id == member_id, assignments.c.scope_id == scope_id)
    row = tx.execute(select(assignments).where(*found)).first()
    return None if row is None else _assignment(tx, row)


def assignments_of(tx: Connection, member_id: str) -> list[Assignment]:
    """Everything that one member was given, oldest first."""
    rows = tx.execute(select(assignments).where(assignments.c.member_id == member_id).order_by(assignments.c.seq))
    return [_assignment(tx, row) for row in rows]


def list_members(tx: Connection, scope_ids: list[str]) -> list[tuple[Member, Assignment]]:
    """Who has a role in one of these places, by address."""
    query = (
        select(assignments)
        .join(members, assignments.c.member_id == members.c.id)
        .where(assignments.c.scope_id.in_(scope_ids))
        .order_by(members.c.email, assignments.c.seq)
    )
    given = [_assignment(tx, row) for row in tx.execute(query)]
    people = tx.execute(select(members).where(members.c.id.in_([one.member_id for one in given])))
    known = {row.id: _member(row) for row in people}
    return [(known[one.member_id], one) for one in given]


def _member(row: Row[Any]) -> Member:
    return Member(**{**{name: getattr(row, name) for name in NAMES}, "kind": MemberKind(row.kind)})


def _assignment(tx: Connection, row: Row[Any]) -> Assignment:
    return Assignment(
        member_id=row.member_id,
        hub_id=row.hub_id,
        project_id=row.project_id,
        role=role_of(tx, row.role),
        created_at=row.created_at,
        origin=Origin(row.origin),
    )
