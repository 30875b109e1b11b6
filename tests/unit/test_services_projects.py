"""The first run, keys and who they belong to, on both databases."""

import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.store_rows import add_project

from smedje.domain.projects import Permission, Role
from smedje.errors import AuthenticationFailed, InvalidRequest, NotFound
from smedje.objects.store import open_objects
from smedje.services import projects
from smedje.services.context import Context
from smedje.store import projects as rows
from smedje.store.database import Database

OWN_KEY = "a-bootstrap-key-of-my-own"


@pytest.fixture
def ctx(database: Database, tmp_path: Path) -> Context:
    """A context on an empty database."""
    return Context(database=database, objects=open_objects("memory:///"), home=tmp_path / "home", now=lambda: 1000.5)


def keys(ctx: Context, project_id: str) -> int:
    """How many keys a project has."""
    with ctx.database.transaction() as tx:
        return len(rows.list_keys(tx, project_id))


def test_a_first_run_makes_the_defaults_and_one_owner_key(ctx: Context) -> None:
    """Hub and project are called default; the key opens the project and is told once; later runs change nothing."""
    first = projects.ensure_defaults(ctx, None, "here")
    assert first.new_secret is not None
    caller = projects.authenticate(ctx, first.new_secret)
    assert (caller.project, caller.role) == (first.project, Role.OWNER)
    assert all(caller.may(permission) for permission in Permission)
    with ctx.database.transaction() as tx:
        assert [(hub.name, hub.location) for hub in rows.list_hubs(tx)] == [("default", "here")]
    again = projects.ensure_defaults(ctx, None, "elsewhere")
    assert again == projects.BootstrapResult(project=first.project)
    assert keys(ctx, first.project.id) == 1


@pytest.mark.skipif(os.name == "nt", reason="file rights are POSIX")
def test_the_owner_key_file_is_for_its_owner_alone(ctx: Context) -> None:
    """The key stands in <home>/owner_key with mode 0600, whatever the umask, and no draft is left beside it."""
    before = os.umask(0)
    try:
        made = projects.ensure_defaults(ctx, None, "local")
    finally:
        os.umask(before)
    assert made.key_file == ctx.home / "owner_key"
    assert made.key_file.read_text().strip() == made.new_secret
    assert stat.S_IMODE(made.key_file.stat().st_mode) == 0o600
    assert [path.name for path in ctx.home.iterdir()] == ["owner_key"]


def test_a_bootstrap_key_is_taken_as_it_is(ctx: Context) -> None:
    """A key of the user's own opens the default project; no other is generated and none is written down."""
    made = projects.ensure_defaults(ctx, OWN_KEY, "local")
    assert made.new_secret is None
    assert not (ctx.home / "owner_key").exists()
    assert projects.authenticate(ctx, OWN_KEY).project == made.project
    projects.ensure_defaults(ctx, OWN_KEY, "local")
    projects.ensure_defaults(ctx, None, "local")
    assert keys(ctx, made.project.id) == 1
    projects.ensure_defaults(ctx, OWN_KEY + "-2", "local")
    assert keys(ctx, made.project.id) == 2


@pytest.mark.parametrize("secret", ["short", "with a space in it", "ümlaut-ümlaut-ümlaut", "x" * 600, "tab\t" * 8])
def test_a_bootstrap_key_that_cannot_be_a_key_is_refused(ctx: Context, secret: str) -> None:
    """Too short, too long or not plain text: refused before anything is made."""
    with pytest.raises(InvalidRequest, match="16 to 512"):
        projects.ensure_defaults(ctx, secret, "local")


def test_a_mistyped_key_of_our_own_form_is_refused_as_bootstrap_key(ctx: Context) -> None:
    """One character wrong in a generated key does not make it another key."""
    secret = projects.new_secret()
    wrong = secret[:20] + ("a" if secret[20] != "a" else "b") + secret[21:]
    with pytest.raises(InvalidRequest, match="checksum"):
        projects.ensure_defaults(ctx, wrong, "local")


def test_a_revoked_bootstrap_key_does_not_come_back(ctx: Context) -> None:
    """A server that is started with a revoked key says so and does not start."""
    made = projects.ensure_defaults(ctx, OWN_KEY, "local")
    projects.revoke_key(ctx, made.project, projects.authenticate(ctx, OWN_KEY).key_id)
    with pytest.raises(InvalidRequest, match="revoked"):
        projects.ensure_defaults(ctx, OWN_KEY, "local")


def test_servers_that_start_together_make_one_of_everything(ctx: Context) -> None:
    """Four first runs at once: one hub, one project, one key, and the file holds that key."""
    found: list[projects.BootstrapResult] = []

    def start() -> None:
        found.append(projects.ensure_defaults(ctx, None, "local"))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({made.project.id for made in found}) == 1
    assert keys(ctx, found[0].project.id) == 1
    secrets = [made.new_secret for made in found if made.new_secret is not None]
    assert len(secrets) == 1
    assert (ctx.home / "owner_key").read_text().strip() == secrets[0]


def test_generated_keys_are_checked_without_a_look_up() -> None:
    """Keys have one form, are all different, and one wrong character is seen by the checksum."""
    made = {projects.new_secret() for _ in range(200)}
    assert len(made) == 200
    for secret in made:
        match = projects.GENERATED.match(secret)
        assert match is not None
        assert len(secret) == 7 + 43 + 1 + 6


def test_keys_are_listed_and_revoked_within_their_project(ctx: Context) -> None:
    """Another project cannot revoke a key, and does not learn that it exists."""
    ours = projects.ensure_defaults(ctx, OWN_KEY, "local").project
    with ctx.database.transaction() as tx:
        other = add_project(tx, "other")
    key, secret = projects.create_key(ctx, ours, name="second")
    assert {one.name for one in projects.list_keys(ctx, ours)} == {"bootstrap", "second"}
    with pytest.raises(NotFound):
        projects.revoke_key(ctx, other, key.id)
    assert projects.authenticate(ctx, secret).key_id == key.id
    projects.revoke_key(ctx, ours, key.id)
    with pytest.raises(AuthenticationFailed, match="revoked"):
        projects.authenticate(ctx, secret)


def test_a_key_ends_at_its_time(ctx: Context) -> None:
    """A key works up to its expiry and not from then on."""
    project = projects.ensure_defaults(ctx, OWN_KEY, "local").project
    _, secret = projects.create_key(ctx, project, name="brief", expires_at=1001)
    assert projects.authenticate(ctx, secret).project == project
    with pytest.raises(AuthenticationFailed, match="expired"):
        projects.authenticate(replace(ctx, now=lambda: 1001.0), secret)
