"""Queries for members and the roles that they have been given."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, select

from smedje.domain.projects import Assignment, Member, Role
from smedje.store.paging import insert_if_new
from smedje.store.tables import assignments, members


def insert_member(tx: Connection, member: Member) -> bool:
    """Record a person; False when the address is known already."""
    return insert_if_new(tx, members, asdict(member))


def find_member(tx: Connection, email_or_id: str) -> Member | None:
    """The person with this address or id."""
    column = members.c.email if "@" in email_or_id else members.c.id
    row = tx.execute(select(members).where(column == email_or_id)).first()
    return None if row is None else _member(row)


def put_assignment(tx: Connection, assignment: Assignment) -> None:
    """Give a member a role in a place, in the stead of the one held there before."""
    place = assignment.project_id or assignment.hub_id
    delete_assignment(tx, assignment.member_id, place)
    tx.execute(assignments.insert().values(**{**asdict(assignment), "scope_id": place}))


def delete_assignment(tx: Connection, member_id: str, scope_id: str) -> bool:
    """Take a role back; whether there was one. scope_id: the project's or the hub's id."""
    found = (assignments.c.member_id == member_id, assignments.c.scope_id == scope_id)
    return tx.execute(delete(assignments).where(*found)).rowcount > 0


def assignments_of(tx: Connection, member_id: str) -> list[Assignment]:
    """Everything that one member was given."""
    rows = tx.execute(select(assignments).where(assignments.c.member_id == member_id).order_by(assignments.c.seq))
    return [_assignment(row) for row in rows]


def list_members(tx: Connection, scope_ids: list[str]) -> list[tuple[Member, Assignment]]:
    """Who has a role in one of these places, by address."""
    query = (
        select(members, assignments.c.scope_id, assignments.c.role, assignments.c.hub_id, assignments.c.project_id)
        .add_columns(assignments.c.created_at.label("since"))
        .join(assignments, assignments.c.member_id == members.c.id)
        .where(assignments.c.scope_id.in_(scope_ids))
        .order_by(members.c.email, assignments.c.seq)
    )
    return [
        (
            _member(row),
            Assignment(
                member_id=row.id,
                hub_id=row.hub_id,
                project_id=row.project_id,
                role=Role(row.role),
                created_at=row.since,
            ),
        )
        for row in tx.execute(query)
    ]


def _member(row: Row[Any]) -> Member:
    return Member(id=row.id, email=row.email, name=row.name, created_at=row.created_at)


def _assignment(row: Row[Any]) -> Assignment:
    return Assignment(
        member_id=row.member_id,
        hub_id=row.hub_id,
        project_id=row.project_id,
        role=Role(row.role),
        created_at=row.created_at,
    )
