"""Webhooks, retention, erasures, locations and storage's meter in both databases; what hangs on what."""

from dataclasses import replace

import pytest
from tests.store_rows import add_job, add_project, make_checkpoint, make_event

from smedje.domain.catalog import FineTunedModel
from smedje.domain.deployments import Canary, Deployment, DeploymentStatus, Served
from smedje.domain.jobs import JobStatus
from smedje.domain.quotas import Limit, Quota
from smedje.domain.upkeep import Erasure, ErasureState, Kept, RetentionRule
from smedje.domain.usage import UsageRecord
from smedje.domain.webhooks import Delivery, DeliveryState, EventType, Webhook
from smedje.store import cascade, jobs, quotas, usage, webhooks
from smedje.store import catalog as models
from smedje.store import deployments as deployment_rows
from smedje.store import upkeep as rows
from smedje.store.database import Database


def webhook(project_id: str, number: int = 1) -> Webhook:
    """A webhook for failed jobs."""
    return Webhook(
        id=f"we_{number}",
        project_id=project_id,
        name="w",
        url="https://example.org/",
        event_types=(EventType.JOB_FAILED,),
        secret_version=1,
        created_at=1,
        updated_at=1,
    )


def delivery(one: Webhook, number: int, *, due: int) -> Delivery:
    """An event for a webhook."""
    return Delivery(
        id=f"evt_{number}",
        project_id=one.project_id,
        webhook_id=one.id,
        type=EventType.JOB_FAILED,
        object_id="ftjob-1",
        created_at=1,
        state=DeliveryState.PENDING,
        attempts=0,
        next_at=due,
    )


def test_webhooks_and_their_deliveries(database: Database) -> None:
    """What is written is read back; due deliveries are taken once for a while, oldest first; deletion takes all."""
    with database.transaction() as tx:
        project = add_project(tx)
        hook = webhook(project.id)
        webhooks.insert_webhook(tx, hook)
        for number, due in ((1, 50), (2, 40), (3, 500)):
            webhooks.insert_delivery(tx, delivery(hook, number, due=due))
    with database.transaction() as tx:
        assert webhooks.get_webhook(tx, project.id, hook.id) == hook
        assert webhooks.get_webhook(tx, "proj_other", hook.id) is None
        taken = webhooks.take_due(tx, now=100, hold=60, limit=8)
        assert [(one.id, who) for one, who in taken] == [("evt_2", hook), ("evt_1", hook)]
        assert webhooks.take_due(tx, now=100, hold=60, limit=8) == []
        assert len(webhooks.take_due(tx, now=160, hold=60, limit=1)) == 1
        webhooks.save_delivery(tx, replace(taken[0][0], state=DeliveryState.DELIVERED, status=200, ended_at=7))
        webhooks.end_deliveries(tx, hook.id, now=9, problem="webhook_disabled")
        listed = webhooks.list_deliveries(tx, project.id, hook.id, after=None, limit=10)
        assert [(one.state.value, one.ended_at) for one in listed] == [("failed", 9), ("delivered", 7), ("failed", 9)]
        assert webhooks.delete_ended_deliveries(tx, before=8) == 1
        webhooks.save_webhook(tx, replace(hook, disabled_at=5))
        assert webhooks.active_webhooks(tx, project.id) == []
        webhooks.delete_webhook(tx, project.id, hook.id)
        assert webhooks.list_webhooks(tx, project.id, limit=5) == []


def test_rules_erasures_and_locations(database: Database) -> None:
    """A rule replaces the one before, 0 days end it; an erasure keeps its note until it is done; names are unique."""
    with database.transaction() as tx:
        project = add_project(tx)
        rule = RetentionRule(project_id=project.id, kind=Kept.FILES, days=7, updated_at=1)
        rows.put_rule(tx, rule)
        rows.put_rule(tx, replace(rule, days=9))
        assert rows.list_rules(tx) == [replace(rule, days=9)]
        rows.put_rule(tx, replace(rule, days=0))
        assert rows.list_rules(tx, project.id) == []
        erasure = Erasure(
            id="erase-1",
            project_id=project.id,
            created_at=1,
            state=ErasureState.REMOVING,
            leftovers=("runs/a", "runs/b"),
            certificate="{}",
            sha256="0",
        )
        rows.insert_erasure(tx, erasure)
        assert rows.unfinished_erasures(tx) == [erasure]
        rows.finish_erasure(tx, erasure.id, now=5)
        done = replace(erasure, state=ErasureState.DONE, leftovers=(), ended_at=5)
        assert rows.get_erasure(tx, project.id, erasure.id) == done
        assert rows.list_erasures(tx, project.id, after=None, limit=5) == [done]
        rows.put_location(tx, "here", {"cores": 1}, now=1)
        rows.put_location(tx, "here", {"cores": 2}, now=3)
        assert rows.list_locations(tx) == [("here", {"cores": 2}, 3)]


def test_what_is_stored_is_files_and_checkpoints_of_living_projects(database: Database) -> None:
    """Checkpoints count with their bytes; the meter's mark moves; a job's tokens and a storage row are told apart."""
    with database.transaction() as tx:
        project = add_project(tx)
        job = add_job(tx, project)
        jobs.insert_checkpoint(tx, replace(make_checkpoint(job, 1), bytes=30))
        jobs.insert_checkpoint(tx, replace(make_checkpoint(job, 2), bytes=12))
        assert rows.stored_bytes(tx) == {project.id: 42}
        assert rows.metered_until(tx) == {}
        rows.set_metered(tx, project.id, 5)
        rows.set_metered(tx, project.id, 9)
        assert rows.metered_until(tx) == {project.id: 9}
        record = UsageRecord(
            id="use-1", project_id=project.id, key_id=None, kind="storage", model="storage", byte_seconds=2**50
        )
        assert usage.insert_usage_once(tx, record)
        assert not usage.insert_usage_once(tx, replace(record, byte_seconds=1))
        [found] = usage.slice_usage(tx, [project.id], 0, 10, width=3600)
        assert (found.total.byte_seconds, found.day) == (2**50, 0)
        assert quotas.used(tx, project.id, since=0, now=1)[Limit.STORED_BYTES] == 42


def test_a_warning_is_remembered_in_its_quota(database: Database) -> None:
    """The mark is kept with the limit and can be taken away."""
    with database.transaction() as tx:
        project = add_project(tx)
        quota = Quota(
            project_id=project.id, deployment="", name=Limit.DEPLOYMENTS, value=5, updated_at=1, warn_percent=70
        )
        quotas.put_quota(tx, quota)
        quotas.mark_warned(tx, quota, 77)
        assert quotas.list_quotas(tx, project.id) == [replace(quota, warned_at=77)]
        quotas.mark_warned(tx, quota, None)
        assert quotas.list_quotas(tx, project.id) == [quota]


def test_what_hangs_on_what_and_its_removal(database: Database) -> None:
    """Models, checkpoints, events and deployments of a job are found; deleting the job leaves nothing but usage."""
    with database.transaction() as tx:
        project = add_project(tx)
        job, other = add_job(tx, project), add_job(tx, project, 2, status=JobStatus.SUCCEEDED)
        kept = make_checkpoint(other, 1)
        mine = replace(make_checkpoint(job, 1), key="runs/mine/checkpoints/1", model_name="ft:a:b::mine:ckpt-step-1")
        for one in (mine, kept):
            jobs.insert_checkpoint(tx, one)
        jobs.insert_events(tx, [make_event(job, 1), make_event(other, 2)])
        model = FineTunedModel(
            id="ft:a:b::mine",
            project_id=project.id,
            base_model="a",
            job_id=job.id,
            suffix="",
            checkpoint_key=mine.key,
            step=1,
            created_at=1,
        )
        models.insert_model(tx, model)
        plain = Deployment(
            id="dep-1",
            project_id=project.id,
            name="plain",
            model="a",
            base_model="a",
            adapter_key=None,
            status=DeploymentStatus.READY,
            created_at=1,
        )
        served = Served(model=model.id, base_model="a", adapter_key=mine.key)
        deployment_rows.insert_deployment(tx, plain)
        deployment_rows.insert_deployment(
            tx, replace(plain, id="dep-2", name="canary", canary=Canary(served=served, percent=5))
        )
    with database.transaction() as tx:
        assert cascade.model_keys(tx, project.id) == {mine.key: model.id}
        assert [one.name for one in cascade.deployments_on(tx, project.id, {mine.key})] == ["canary"]
        assert cascade.jobs_with_events(tx, project.id) == {job.id, other.id}
        assert cascade.known_adapters(tx) == {mine.key, kept.key}
        assert [one.id for one in cascade.jobs_of(tx, project.id)] == [job.id, other.id]
        cascade.delete_job(tx, project.id, job.id)
        assert [one.key for one in cascade.checkpoints_of(tx, project.id)] == [kept.key]
        assert cascade.model_keys(tx, project.id) == {}
        assert cascade.jobs_with_events(tx, project.id) == {other.id}
        assert cascade.delete_events(tx, "proj_foreign", other.id) == 0
        assert cascade.delete_events(tx, project.id, other.id) == 1


@pytest.mark.parametrize("project_id", ["proj_other", ""])
def test_a_foreign_project_finds_nothing(database: Database, project_id: str) -> None:
    """Another project's id opens neither an erasure nor a webhook nor a checkpoint."""
    with database.transaction() as tx:
        project = add_project(tx)
        job = add_job(tx, project)
        jobs.insert_checkpoint(tx, make_checkpoint(job, 1))
        webhooks.insert_webhook(tx, webhook(project.id))
        assert webhooks.list_webhooks(tx, project_id, limit=5) == []
        assert cascade.checkpoints_of(tx, project_id) == []
        cascade.delete_checkpoint(tx, project_id, make_checkpoint(job, 1).key)
        assert len(cascade.checkpoints_of(tx, project.id)) == 1
