"""The one table of roles, as the documentation shows it, and what grants cover."""

import os
from pathlib import Path

from smedje.domain.projects import ROLE_NAMES, ROLE_PERMISSIONS, Grant, Permission, Role

PAGE = Path(__file__).parents[2] / "docs" / "governance.md"
HEAD = "|---|---|---|---|---|---|\n"


def table() -> str:
    """Permissions by role, one line a permission."""
    return "".join(
        f"| `{permission.value}` | "
        + " | ".join("yes" if permission in ROLE_PERMISSIONS[role] else "" for role in Role)
        + " |\n"
        for permission in Permission
    )


def test_the_documented_table_is_the_one_in_code() -> None:
    """docs/governance.md shows every permission of every role. Renew it with UPDATE_SNAPSHOTS=1."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(HEAD)
    after = rest[rest.index("\n\n") :]
    if os.environ.get("UPDATE_SNAPSHOTS"):
        PAGE.write_text(before + HEAD + table().rstrip() + after, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8").partition(HEAD)[2].startswith(table())
    assert " | ".join(ROLE_NAMES.values()) in before


def test_an_owner_may_do_all_and_alone_says_who_may() -> None:
    """No other role gives roles; a Contributor does all the rest; each role adds to Reader but the Operator."""
    assert ROLE_PERMISSIONS[Role.OWNER] == frozenset(Permission)
    people = {Permission.MEMBERS_WRITE, Permission.USERS_WRITE}
    assert ROLE_PERMISSIONS[Role.OWNER] - ROLE_PERMISSIONS[Role.CONTRIBUTOR] == people
    assert ROLE_PERMISSIONS[Role.READER] < ROLE_PERMISSIONS[Role.AI_DEVELOPER] < ROLE_PERMISSIONS[Role.CONTRIBUTOR]
    writes = {one for one in ROLE_PERMISSIONS[Role.DEPLOYMENT_OPERATOR] if not one.value.endswith(".read")}
    assert writes == {Permission.DEPLOYMENTS_WRITE}


def test_a_grant_covers_its_place_and_what_lies_in_it() -> None:
    """A project's grant covers that project alone, a hub's all of its projects, one without a place everything."""
    project, hub = Grant(role=Role.READER, hub_id="h", project_id="p"), Grant(role=Role.READER, hub_id="h")
    assert project.covers("h", "p")
    assert not project.covers("h")
    assert not project.covers("h", "q")
    assert hub.covers("h", "q")
    assert hub.covers("h")
    assert not hub.covers("g", "q")
    assert not hub.covers(None)
    server = Grant(role=Role.READER)
    assert server.covers(None)
    assert server.covers("g", "q")
