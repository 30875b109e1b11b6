"""Members, sessions, attempts to sign in, roles and the audit log's filters, on both databases."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.databases import *  # noqa: F403

from smedje.domain.audit import FIRST, AuditEntry, AuditFilter
from smedje.domain.projects import ApiKey, Assignment, Hub, Member, MemberKind, Origin, Project, Session
from smedje.domain.roles import CustomRole, Permission, Role
from smedje.errors import Conflict, NotFound, SmedjeError
from smedje.objects.store import open_objects
from smedje.services.context import Context
from smedje.services.sessions import MOST_BOTH, check_password
from smedje.store import audit, members, roles, sessions
from smedje.store import projects as places
from smedje.store.database import Database

ADA = Member(id="user_1", email="ada@example.org", name="Ada", created_at=1)
CI = Member(id="user_2", email="ci@services.internal", name="ci", created_at=1, kind=MemberKind.SERVICE)
TUNER = CustomRole(
    id="role_1",
    hub_id="hub_1",
    name="tuner",
    description="tunes",
    permissions=frozenset({Permission.JOBS_WRITE, Permission.FILES_READ}),
    created_at=2,
)


@pytest.fixture
def filled(database: Database) -> Database:
    """A hub with a project, a person, a service identity and a role of the hub's own."""
    with database.transaction() as tx:
        places.insert_hub(tx, Hub(id="hub_1", name="h", display_name="H", location="local", created_at=1))
        project = Project(id="proj_1", hub_id="hub_1", name="p", description="", created_at=1)
        places.insert_project(tx, project)
        assert members.insert_member(tx, ADA)
        assert members.insert_member(tx, CI)
        roles.insert_role(tx, TUNER)
    return database


def given(member: Member, role: Role | CustomRole, project: str | None, origin: Origin = Origin.GIVEN) -> Assignment:
    """A role in the project or the hub."""
    return Assignment(member_id=member.id, hub_id="hub_1", project_id=project, role=role, created_at=3, origin=origin)


def test_a_member_and_what_they_sign_in_with_come_back(filled: Database) -> None:
    """By address, id and the provider's subject, whatever was saved; the password's hash stays apart; an address and
    a subject are each one member's."""
    changed = replace(ADA, issuer="https://id", subject="7", disabled_at=9, last_sign_in_at=8)
    with filled.transaction() as tx:
        members.save_member(tx, changed)
        members.set_password(tx, ADA.id, "hash")
        assert members.find_member(tx, ADA.email) == members.find_member(tx, ADA.id) == changed
        assert members.find_subject(tx, "https://id", "7") == changed
        assert members.find_subject(tx, "https://other", "7") is None
        assert (members.password_of(tx, ADA.id), members.password_of(tx, CI.id)) == ("hash", None)
        assert members.page_members(tx, after=None, limit=1) == [(CI, False)]
        assert members.page_members(tx, after=CI.id, limit=5) == [(changed, True)]
        assert not members.insert_member(tx, replace(ADA, id="user_3"))
        assert not members.insert_member(tx, replace(changed, id="user_3", email="x@example.org"))


def test_assignments_keep_role_and_origin(filled: Database) -> None:
    """Built-in and own roles alike; one a member and place; a role that changes is changed for those who have it."""
    wanted = [given(ADA, TUNER, "proj_1", Origin.MAPPED), given(ADA, Role.READER, None), given(CI, TUNER, "proj_1")]
    with filled.transaction() as tx:
        for one in (given(ADA, Role.OWNER, "proj_1"), *wanted):
            members.put_assignment(tx, one)
        assert members.assignments_of(tx, ADA.id) == wanted[:2]
        assert members.list_members(tx, ["proj_1"]) == [(ADA, wanted[0]), (CI, wanted[2])]
        assert members.find_assignment(tx, ADA.id, "hub_1") == wanted[1]
        assert members.find_assignment(tx, CI.id, "hub_1") is None
        less = replace(TUNER, permissions=frozenset({Permission.CHAT}))
        roles.save_role(tx, less)
        assert members.find_assignment(tx, CI.id, "proj_1") == given(CI, less, "proj_1")
        assert members.delete_assignment(tx, CI.id, "proj_1")
        assert not members.delete_assignment(tx, CI.id, "proj_1")


def test_a_buried_role_frees_its_name_and_leaves_its_keys_readable(filled: Database) -> None:
    """Holders are members and living keys; afterwards nobody finds the role, another may have its name, and an ended
    key still names it, allowing nothing."""
    key = ApiKey(
        id="key_1", project_id="proj_1", name="k", role=TUNER, prefix="p", last_four="l", created_at=1, expires_at=50
    )
    with filled.transaction() as tx:
        places.insert_key(tx, key, "digest")
        members.put_assignment(tx, given(CI, TUNER, "proj_1"))
        assert roles.holders_of(tx, TUNER.id, 49) == ["key_1", CI.id]
        assert roles.holders_of(tx, TUNER.id, 50) == [CI.id]
        assert places.find_key(tx, "digest") == key
        with pytest.raises(Conflict):
            roles.insert_role(tx, replace(TUNER, id="role_2"))
        roles.bury_role(tx, TUNER)
        assert roles.find_role(tx, "hub_1", "tuner") is roles.find_role(tx, "hub_1", TUNER.id) is None
        roles.insert_role(tx, replace(TUNER, id="role_2"))
        assert [role.id for role in roles.list_roles(tx, "hub_1")] == ["role_2"]
        found = places.find_key(tx, "digest")
    assert found is not None
    assert isinstance(found.role, CustomRole)
    assert found.role.permissions == frozenset()


def test_sessions_end_and_are_forgotten(filled: Database) -> None:
    """Found by digest alone; ended one by one or all but one; those long over are deleted."""
    made = [
        Session(id=f"sess_{n}", member_id=ADA.id, project_id=None, created_at=n, expires_at=100 + n, last_used_at=n)
        for n in range(3)
    ]
    with filled.transaction() as tx:
        for n, session in enumerate(made):
            sessions.insert_session(tx, session, f"digest {n}")
        assert sessions.find_session(tx, "digest 1") == made[1]
        assert sessions.find_session(tx, "digest 9") is None
        sessions.touch_session(tx, "sess_1", 60)
        sessions.move_session(tx, "sess_1", "proj_1")
        sessions.end_session(tx, "sess_0", 50)
        sessions.end_sessions(tx, ADA.id, 70, but="sess_1")
        found = [sessions.find_session(tx, f"digest {n}") for n in range(3)]
        assert found == [
            replace(made[0], ended_at=50),
            replace(made[1], last_used_at=60, project_id="proj_1"),
            replace(made[2], ended_at=70),
        ]
        sessions.forget_sessions(tx, 60)
        assert [sessions.find_session(tx, f"digest {n}") is None for n in range(3)] == [True, False, False]
        sessions.forget_sessions(tx, 200)
        assert sessions.find_session(tx, "digest 1") is None


def test_attempts_are_counted_by_account_and_place(filled: Database) -> None:
    """Within the window alone; clearing forgets one account's from one place; old ones go when a new one comes."""
    with filled.transaction() as tx:
        for account, address, now in (("a", "x", 1), ("a", "x", 10), ("a", "y", 11), ("b", "x", 12)):
            sessions.insert_attempt(tx, account=account, address=address, now=now, forget=0)
        found = sessions.count_attempts(tx, account="a", address="x", since=5)
        assert found == sessions.Attempts(account=2, address=2, both=1)
        assert sessions.oldest_attempt(tx, account="a", address="x", since=5) == 10
        sessions.clear_attempts(tx, account="a", address="x")
        found = sessions.count_attempts(tx, account="a", address="x", since=0)
        assert found == sessions.Attempts(account=1, address=1, both=0)
        sessions.insert_attempt(tx, account="c", address="z", now=20, forget=12)
        assert sessions.count_attempts(tx, account="a", address="x", since=0).account == 0


def test_many_attempts_at_once_do_not_slip_through_together(database: Database, tmp_path: Path) -> None:
    """Of sixteen guesses at the same moment five are looked at, on either database."""
    ctx = Context(database=database, objects=open_objects("memory:///"), home=tmp_path)

    def guess(number: int) -> str:
        try:
            check_password(ctx, "ada@example.org", f"guess number {number}")
        except SmedjeError as problem:
            return problem.code
        return "in"

    with ThreadPoolExecutor(8) as pool:
        found = Counter(pool.map(guess, range(16)))
    assert found == {"wrong_credentials": MOST_BOTH, "too_many_attempts": 16 - MOST_BOTH}


def entry(number: int, **fields: str | None) -> AuditEntry:
    """An audit entry; only what the filters look at differs."""
    text: dict[str, str | None] = {
        "hub_id": None,
        "project_id": None,
        "key_id": None,
        "member_id": None,
        "address": None,
        "request_id": None,
    }
    return AuditEntry(
        id=f"audit-{number}",
        at=number,
        action=fields.pop("action", "a") or "",
        object_id=fields.pop("object_id", "o") or "",
        details="{}",
        previous=FIRST if number == 0 else f"{number:064}",
        **{**text, **fields},
    )


def test_the_log_is_searched_both_ways(database: Database) -> None:
    """Filters combine; what the asker may not see is neither found nor a cursor; pages go towards older and newer."""
    log = [
        entry(0, project_id="proj_1", key_id="key_1"),
        entry(1, project_id="proj_1", member_id="user_1", action="b"),
        entry(2, project_id="proj_2", key_id="key_1", object_id="other"),
        entry(3, hub_id="hub_1", action="b"),
        entry(4),
        entry(5, project_id="proj_1", hub_id="hub_1", member_id="user_1"),
    ]

    def ids(wanted: AuditFilter, cursor: str | None = None, *, newer: bool = False, limit: int = 9) -> list[int]:
        found = audit.search(tx, wanted, cursor=cursor, newer=newer, limit=limit)
        return [int(one.id.removeprefix("audit-")) for one in found]

    with database.transaction() as tx:
        for one in log:
            audit.append(tx, one)
        assert ids(AuditFilter()) == [5, 4, 3, 2, 1, 0]
        assert ids(AuditFilter(project_ids=["proj_1"])) == [5, 1, 0]
        assert ids(AuditFilter(project_ids=[], hub_ids=["hub_1"])) == [3]
        assert ids(AuditFilter(actors=["key_1"])) == [2, 0]
        assert ids(AuditFilter(actors=["user_1"], actions=["b"])) == [1]
        assert ids(AuditFilter(actors=[])) == []
        assert ids(AuditFilter(object_ids=["other"])) == [2]
        assert ids(AuditFilter(wanted_projects=["proj_1"], since=1, until=4)) == [1]
        assert ids(AuditFilter(), "audit-4", limit=2) == [3, 2]
        assert ids(AuditFilter(), "audit-2", newer=True, limit=2) == [4, 3]
        with pytest.raises(NotFound):
            ids(AuditFilter(project_ids=["proj_1"]), "audit-2")
