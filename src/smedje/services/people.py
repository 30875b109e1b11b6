"""Who somebody is: the roles that they have, with the names of the places, for showing them to themselves."""

from dataclasses import dataclass

from smedje.domain.projects import Grant, Member, Principal
from smedje.domain.roles import Permission, role_title, role_word
from smedje.services.context import Context
from smedje.store import members as member_rows
from smedje.store import projects as project_rows


@dataclass(frozen=True, kw_only=True)
class HeldRole:
    """A role and where it holds, in words and ids. Neither hub nor project: the whole server."""

    word: str
    title: str
    hub_id: str | None
    hub: str | None
    project_id: str | None
    project: str | None

    @property
    def place(self) -> str:
        """Where it holds, for people."""
        if self.hub is None:
            return "the whole server"
        return f"project {self.project} in hub {self.hub}" if self.project else f"hub {self.hub}"


def roles_of(ctx: Context, member: Member) -> list[HeldRole]:
    """Every role that a member was given, in places that are still there."""
    with ctx.database.transaction() as tx:
        given = member_rows.assignments_of(tx, member.id)
    return _named(ctx, [Grant(role=one.role, hub_id=one.hub_id, project_id=one.project_id) for one in given])


def member_of(ctx: Context, caller: Principal | None) -> Member | None:
    """The member whom a key belongs to, if any."""
    if caller is None or caller.member_id is None:
        return None
    with ctx.database.transaction() as tx:
        return member_rows.find_member(tx, caller.member_id)


def roles_of_caller(ctx: Context, caller: Principal) -> list[HeldRole]:
    """Every role that a key or session acts with, in places that are still there."""
    return _named(ctx, list(caller.grants or ()))


def permissions_here(caller: Principal) -> list[str]:
    """What a caller may do in the project that it acts in."""
    return sorted(one.value for one in Permission if caller.may(one))


def _named(ctx: Context, grants: list[Grant]) -> list[HeldRole]:
    with ctx.database.transaction() as tx:
        hubs = {hub.id: hub.name for hub in project_rows.list_hubs(tx)}
        projects = {project.id: project.name for project in project_rows.list_projects(tx)}
    return [
        HeldRole(
            word=role_word(grant.role),
            title=role_title(grant.role),
            hub_id=grant.hub_id,
            hub=hubs.get(grant.hub_id or ""),
            project_id=grant.project_id,
            project=projects.get(grant.project_id or ""),
        )
        for grant in grants
        if (grant.hub_id is None or grant.hub_id in hubs) and (grant.project_id is None or grant.project_id in projects)
    ]
