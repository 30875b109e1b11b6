"""Queries for projects, keys, files, models, deployments, usage and runs, on both databases."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Connection
from tests.databases import Postgres
from tests.store_rows import add_job, add_project, make_file, make_run

from smedje.domain.catalog import FineTunedModel
from smedje.domain.deployments import Deployment, DeploymentStatus
from smedje.domain.files import FilePurpose, FileStatus
from smedje.domain.projects import ApiKey, Hub, Project, Role
from smedje.domain.runs import RunState
from smedje.domain.usage import UsageRecord
from smedje.errors import Conflict, InternalError, InvalidRequest, NotFound, Unavailable
from smedje.store import catalog, deployments, files, projects, runs, usage
from smedje.store.database import Database


def api_key(project: Project, number: int = 1) -> ApiKey:
    """A key of a project."""
    return ApiKey(
        id=f"key_{number}",
        project_id=project.id,
        name="laptop",
        role=Role.OWNER,
        prefix="smedje_abcd",
        last_four="wxyz",
        created_at=5,
        expires_at=99,
    )


def deployment(project: Project, name: str = "support") -> Deployment:
    """A deployment of a base model."""
    return Deployment(
        id=f"dep-{project.name}-{name}",
        project_id=project.id,
        name=name,
        model="phi",
        base_model="phi",
        adapter_key=None,
        status=DeploymentStatus.CREATING,
        created_at=5,
    )


def test_hubs_and_projects_come_back(database: Database) -> None:
    """What was recorded is what is read, found by id and by both names, listed oldest first."""
    with database.transaction() as tx:
        first, second = add_project(tx, "first"), add_project(tx, "second")
        assert projects.get_project(tx, first.id) == first
        assert projects.find_project(tx, "second", "second") == second
        assert projects.find_project(tx, "first", "second") is None
        assert projects.get_project(tx, "proj_absent") is None
        assert projects.list_projects(tx) == [first, second]
        assert projects.list_projects(tx, hub_id=second.hub_id) == [second]
        assert [hub.name for hub in projects.list_hubs(tx)] == ["first", "second"]


def test_names_are_unique_where_they_must_be(database: Database) -> None:
    """A hub's name once, a project's once in its hub; the same project name in another hub is fine."""
    with database.transaction() as tx:
        project = add_project(tx)
        other = Hub(id="hub_o", name="other", display_name="", location="", created_at=1)
        projects.insert_hub(tx, other)
        projects.insert_project(tx, replace(project, id="proj_o", hub_id=other.id))
        with pytest.raises(Conflict, match="project called default"):
            projects.insert_project(tx, replace(project, id="proj_x"))
        with pytest.raises(Conflict, match="hub called other"):
            projects.insert_hub(tx, replace(other, id="hub_x"))
        assert len(projects.list_projects(tx)) == 2


def test_a_key_is_found_by_its_digest_alone(database: Database) -> None:
    """The digest finds the key; revoking keeps the first time and respects the project."""
    with database.transaction() as tx:
        project, foreign = add_project(tx), add_project(tx, "foreign")
        key = api_key(project)
        projects.insert_key(tx, key, "a" * 64)
        with pytest.raises(Conflict):
            projects.insert_key(tx, api_key(project, 2), "a" * 64)
        projects.insert_key(tx, api_key(project, 3), "b" * 64)
        assert projects.find_key(tx, "a" * 64) == key
        assert projects.find_key(tx, "c" * 64) is None
        assert [one.id for one in projects.list_keys(tx, project.id)] == ["key_3", "key_1"]
        assert not projects.revoke_key(tx, foreign.id, key.id, 50)
        assert projects.find_key(tx, "a" * 64) == key
        assert projects.revoke_key(tx, project.id, key.id, 50)
        assert projects.revoke_key(tx, project.id, key.id, 60)
        assert projects.find_key(tx, "a" * 64) == replace(key, revoked_at=50)


def test_a_file_comes_back_and_changes(database: Database) -> None:
    """Every field survives, sizes beyond 32 bits and any script too; saving changes the status and no more."""
    with database.transaction() as tx:
        project, foreign = add_project(tx), add_project(tx, "foreign")
        file = make_file(project, 1, expires_at=7)
        files.insert_file(tx, file)
        assert files.get_file(tx, project.id, file.id) == file
        assert files.get_file(tx, foreign.id, file.id) is None
        broken = replace(file, status=FileStatus.ERROR, status_details="Line 1: …", examples=0, filename="other")
        files.save_file(tx, broken)
        assert files.get_file(tx, project.id, file.id) == replace(broken, filename=file.filename)
        with pytest.raises(NotFound):
            files.save_file(tx, replace(file, project_id=foreign.id))


def test_file_lists_page_in_both_orders(database: Database) -> None:
    """Following the cursor gives each file once, in either order, all made in the same second; filters hold."""
    with database.transaction() as tx:
        project, foreign = add_project(tx), add_project(tx, "foreign")
        for number in range(7):
            files.insert_file(tx, make_file(project, number))
        files.insert_file(tx, make_file(project, 100, purpose=FilePurpose.FINE_TUNE_RESULTS))
        files.insert_file(tx, make_file(foreign, 200))
        for order, wanted in (("asc", list(range(7))), ("desc", list(range(6, -1, -1)))):
            seen: list[str] = []
            while found := files.list_files(
                tx,
                project.id,
                purpose=FilePurpose.FINE_TUNE,
                after=seen[-1] if seen else None,
                limit=3,
                order=order,
            ):
                seen += [file.id for file in found]
            assert seen == [f"file-{number}" for number in wanted]
        assert len(files.list_files(tx, project.id, limit=100)) == 8


def test_a_cursor_must_be_ones_own(database: Database) -> None:
    """A cursor that names nothing, or another project's file, is not found; one that a filter hides still works."""
    with database.transaction() as tx:
        project, foreign = add_project(tx), add_project(tx, "foreign")
        files.insert_file(tx, make_file(project, 1))
        files.insert_file(tx, make_file(project, 2, purpose=FilePurpose.FINE_TUNE_RESULTS))
        files.insert_file(tx, make_file(foreign, 3))
        for cursor in ("file-absent", "file-3"):
            with pytest.raises(NotFound) as caught:
                files.list_files(tx, project.id, after=cursor, limit=10)
            assert caught.value.param == "after"
        found = files.list_files(tx, project.id, purpose=FilePurpose.FINE_TUNE, after="file-2", limit=10)
        assert [file.id for file in found] == ["file-1"]


def test_bytes_stay_while_any_file_has_them(database: Database) -> None:
    """A digest is in use until the last file with it, in whichever project, is deleted."""
    with database.transaction() as tx:
        project, foreign = add_project(tx), add_project(tx, "foreign")
        digest = "d" * 64
        files.insert_file(tx, make_file(project, 1, sha256=digest))
        files.insert_file(tx, make_file(foreign, 2, sha256=digest))
        assert not files.delete_file(tx, foreign.id, "file-1")
        assert files.delete_file(tx, project.id, "file-1")
        assert files.digest_in_use(tx, digest)
        assert files.delete_file(tx, foreign.id, "file-2")
        assert not files.digest_in_use(tx, digest)
        assert not files.delete_file(tx, foreign.id, "file-2")


def test_deleting_and_recording_the_same_bytes_cannot_cross(database: Database) -> None:
    """Who asks whether a digest is in use is alone with it until its transaction ends: bytes never vanish under a
    row, however deletions and uploads of the same content interleave."""
    with database.transaction() as tx:
        project = add_project(tx)
    stored = {"d" * 64}
    guard = threading.Lock()

    def upload(number: int) -> None:
        with guard:
            stored.add("d" * 64)
        with database.transaction() as tx:
            files.digest_in_use(tx, "d" * 64)
            if "d" * 64 in stored:
                files.insert_file(tx, make_file(project, number, sha256="d" * 64))

    def delete(number: int) -> None:
        with database.transaction() as tx:
            files.delete_file(tx, project.id, f"file-{number}")
            if not files.digest_in_use(tx, "d" * 64):
                stored.discard("d" * 64)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: upload(n // 2) if n % 2 == 0 else delete(n // 2), range(120)))
    with database.transaction() as tx:
        rows = files.list_files(tx, project.id, limit=1000)
    assert not rows or stored


def test_who_asks_about_a_digest_is_alone_with_it(postgres: Postgres) -> None:
    """On PostgreSQL, where transactions overlap: a second question about the same bytes waits for the first one's end,
    one about other bytes does not."""
    url = postgres.create(migrated=True)
    first, second = Database(url), Database(url + "&options=-c%20lock_timeout%3D100ms")

    def ask(digest: str) -> bool:
        with second.transaction() as tx:
            return files.digest_in_use(tx, digest)

    with ThreadPoolExecutor(1) as pool, first.transaction() as tx:
        assert not files.digest_in_use(tx, "d" * 64)
        assert pool.submit(ask, "e" * 64).result(60) is False
        with pytest.raises(Unavailable):
            pool.submit(ask, "d" * 64).result(60)
    assert ask("d" * 64) is False
    first.close()
    second.close()
    postgres.drop(url)


def test_text_that_cannot_be_kept_is_the_requests_fault(database: Database) -> None:
    """PostgreSQL keeps no NUL; whatever the database does with it, it is never an internal error."""
    with database.transaction() as tx:
        project = add_project(tx)
    try:
        with database.transaction() as tx:
            files.insert_file(tx, make_file(project, 1, status_details="a\0b"))
    except InvalidRequest as error:
        assert error.code == "invalid_value"  # noqa: PT017 - one database keeps it, the other refuses


def test_a_row_cannot_point_at_nothing(database: Database) -> None:
    """Foreign keys hold on both databases."""
    stranger = Project(id="proj_absent", hub_id="hub_absent", name="x", description="", created_at=1)
    with pytest.raises(InternalError), database.transaction() as tx:
        files.insert_file(tx, make_file(stranger, 1))


def add_model(tx: Connection, project: Project, number: int) -> FineTunedModel:
    """A fine-tuned model and the job it came from."""
    job = add_job(tx, project, number)
    model = FineTunedModel(
        id=f"ft:phi:default::{number:08d}",
        project_id=project.id,
        base_model="phi",
        job_id=job.id,
        suffix="",
        checkpoint_key="runs/r/checkpoints/5",
        step=5,
        created_at=100,
    )
    catalog.insert_model(tx, model)
    return model


def test_models_belong_to_their_project(database: Database) -> None:
    """A name finds its model in its own project alone, lists are newest first, and a name is there once."""
    with database.transaction() as tx:
        project, foreign = add_project(tx), add_project(tx, "foreign")
        first, second = add_model(tx, project, 1), add_model(tx, project, 2)
        assert catalog.get_model(tx, project.id, first.id) == first
        assert catalog.get_model(tx, foreign.id, first.id) is None
        assert catalog.list_models(tx, project.id) == [second, first]
        with pytest.raises(Conflict):
            catalog.insert_model(tx, first)
        assert not catalog.delete_model(tx, foreign.id, first.id)
        assert catalog.delete_model(tx, project.id, first.id)
        assert catalog.list_models(tx, project.id) == [second]


def test_deployment_names_are_unique_in_a_project(database: Database) -> None:
    """The second of a name is refused and the first stands; another project may use the name."""
    with database.transaction() as tx:
        project, foreign = add_project(tx), add_project(tx, "foreign")
        first = deployment(project)
        deployments.insert_deployment(tx, first)
        deployments.insert_deployment(tx, deployment(foreign))
        with pytest.raises(Conflict) as caught:
            deployments.insert_deployment(tx, replace(first, id="dep-2", model="other"))
        assert caught.value.code == "deployment_exists"
        assert deployments.get_deployment(tx, project.id, "support") == first


def test_of_many_at_once_one_gets_the_name(database: Database) -> None:
    """Requests that deploy under the same name at the same moment: one succeeds, the others are told."""
    with database.transaction() as tx:
        project = add_project(tx)

    def attempt(number: int) -> bool:
        try:
            with database.transaction() as tx:
                deployments.insert_deployment(tx, replace(deployment(project), id=f"dep-{number}"))
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 1


def test_deployments_change_and_go(database: Database) -> None:
    """Saving changes model, status and error; lists filter by model; deleting respects the project."""
    with database.transaction() as tx:
        project, foreign = add_project(tx), add_project(tx, "foreign")
        first, second = deployment(project), deployment(project, "second")
        deployments.insert_deployment(tx, first)
        deployments.insert_deployment(tx, second)
        moved = replace(
            first, model="ft:x", adapter_key="k", status=DeploymentStatus.FAILED, error="no memory", revision=2
        )
        deployments.save_deployment(tx, moved, was=1, now=7)
        with pytest.raises(Conflict):
            deployments.save_deployment(tx, moved, was=1, now=8)
        assert [(r.number, r.model) for r in deployments.list_revisions(tx, first.id)] == [
            (2, "ft:x"),
            (1, first.model),
        ]
        assert deployments.list_deployments(tx, project.id) == [second, moved]
        assert deployments.list_deployments(tx, project.id, model="ft:x") == [moved]
        assert deployments.list_deployments(tx, foreign.id) == []
        assert not deployments.delete_deployment(tx, foreign.id, "support")
        assert deployments.delete_deployment(tx, project.id, "support")
        assert deployments.get_deployment(tx, project.id, "support") is None
        with pytest.raises(NotFound):
            deployments.save_deployment(tx, moved, was=2, now=9)


def test_usage_sums_by_kind_and_model(database: Database) -> None:
    """Sums are exact, take the beginning and leave the end, and never mix projects."""
    with database.transaction() as tx:
        project, foreign = add_project(tx), add_project(tx, "foreign")
        for number in range(10):
            record = UsageRecord(
                id=f"use-{number}",
                project_id=(foreign if number == 9 else project).id,
                key_id="key_1",
                kind="training" if number == 8 else "inference",
                model="phi",
                prompt_tokens=2**40,
                completion_tokens=number,
                trained_tokens=5 if number == 8 else 0,
                seconds=0.25,
                created_at=100 + number,
            )
            usage.insert_usage(tx, record)
        found = usage.sum_usage(tx, project.id, 101, 109)
        assert [(one.kind, one.model, one.records) for one in found] == [
            ("inference", "phi", 7),
            ("training", "phi", 1),
        ]
        assert (found[0].prompt_tokens, found[0].completion_tokens) == (7 * 2**40, sum(range(1, 8)))
        assert (found[0].seconds, found[1].trained_tokens) == (1.75, 5)
        assert usage.sum_usage(tx, project.id, 500, 600) == []


def test_runs_are_attempts_of_a_job(database: Database) -> None:
    """Attempts are listed in order, the last one found, an attempt's number used once, and changes kept."""
    with database.transaction() as tx:
        project = add_project(tx)
        job, other = add_job(tx, project, 1), add_job(tx, project, 2)
        assert runs.latest_run(tx, job.id) is None
        first, second = make_run(job, 1), make_run(job, 2)
        for run in (first, second, make_run(other, 1, RunState.FINISHED)):
            runs.insert_run(tx, run)
        ended = replace(
            first, state=RunState.LOST, handle={"pid": 7, "started": "b:1"}, ended_at=200, events_cursor="0000000003"
        )
        runs.save_run(tx, ended)
        assert runs.get_run(tx, first.id) == ended
        assert runs.list_runs(tx, job.id) == [ended, second]
        assert runs.latest_run(tx, job.id) == second
        assert runs.list_active_runs(tx) == [second]
        assert runs.get_run(tx, "run-absent") is None
        with pytest.raises(NotFound):
            runs.save_run(tx, replace(first, id="run-absent"))
    with pytest.raises(Conflict), database.transaction() as tx:
        runs.insert_run(tx, replace(second, id="run-again"))
