"""The scheduler: one loop that claims jobs by lease, starts runs, takes in what they say, and moves jobs on.

It decides only who supervises a job and when a run starts. A scheduler that loses its lease stops touching the job;
a restarted one finds its workers again by process and run folder, and starts a new run only when the old one is gone.
"""

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

from smedje.domain.ids import RUN, new_id
from smedje.domain.jobs import FineTuningJob, JobError, JobStatus, advance
from smedje.domain.runs import Control, Outcome, Run, RunResult, RunState
from smedje.errors import Conflict, NotFound, SmedjeError
from smedje.executors.base import Executor
from smedje.executors.warm import WarmWorkers
from smedje.modeling.folder import installed_folder
from smedje.objects.run_folder import RunFolder
from smedje.services.catalog import resolve_origin
from smedje.services.certificate import certify
from smedje.services.comparison import comparison_event
from smedje.services.context import Context
from smedje.services.integrations import Trackers, write_integrations
from smedje.services.job_ends import meter, moved
from smedje.services.orphans import unfinished
from smedje.services.prediction import job_memory
from smedje.services.preflight import Checked, check_job
from smedje.services.quotas import used_up
from smedje.services.run_events import job_event, model_checkpoint, record_success, take_in
from smedje.services.training_spec import build_spec
from smedje.store import jobs as job_rows
from smedje.store import leases
from smedje.store import projects as project_rows
from smedje.store import runs as run_rows
from smedje.store.leases import Lease
from smedje.training.spec import TrainingSpec, spec_to_json

log = logging.getLogger("smedje.scheduler")
ACTIVE = (RunState.STARTING, RunState.RUNNING)
SUPERVISED = (JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.RUNNING)
MAX_FRUITLESS_RUNS = 3
SILENCE_SECONDS = 60.0
STOP_GRACE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What this scheduler may use: runs at once, bytes of memory for all of them, threads a run, lease in seconds."""

    max_running_jobs: int
    memory_bytes: int
    threads: int
    lease_seconds: int


@dataclass
class Scheduler:
    """Owns leases and the checks in progress. `command`: argv that starts a training worker, run id appended.

    warm: turns a waiting process into a worker where there is one; None where every worker starts afresh.
    trackers: where jobs may have their figures sent.
    """

    ctx: Context
    executor: Executor
    limits: Limits
    owner: str
    command: tuple[str, ...]
    worker_env: Mapping[str, str] = field(default_factory=dict)
    warm: WarmWorkers | None = None
    trackers: Trackers = field(default_factory=Trackers)
    _checks: dict[str, Future[Checked | JobError]] = field(default_factory=dict)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="check"))

    def run_forever(self, stop: threading.Event, *, interval: float = 0.3) -> None:
        """Pass after pass until `stop` is set, and at once when `ctx.wake` is. Workers go on; leases are given up."""
        wake = self.ctx.wake
        while not stop.is_set():
            wake.clear()
            try:
                self.step()
            except Exception:
                # One bad pass must not end supervision; the next pass begins from the rows again.
                log.exception("scheduler pass failed")
            wake.wait(interval)
        if self.warm is not None:
            self.warm.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self.ctx.database.transaction() as tx:
            leases.release_all(tx, owner=self.owner)

    def step(self) -> None:
        """One pass over all jobs that need something."""
        with self.ctx.database.transaction() as tx:
            held = leases.claim_jobs(
                tx,
                owner=self.owner,
                now=self.ctx.now(),
                lease_seconds=self.limits.lease_seconds,
                statuses=SUPERVISED,
                location=self.ctx.location,
            )
        self._stop_unwanted_runs()
        for lease in held:
            try:
                self._supervise(lease)
            except Conflict as moved:
                # Cancelled, paused or taken over while we looked: the row as it is now decides the next pass.
                log.info("job %s moved on: %s", lease.job.id, moved.code)
        if self.warm is not None:
            self.warm.tend(busy=any(lease.job.status is JobStatus.RUNNING for lease in held))

    def _supervise(self, lease: Lease) -> None:
        match lease.job.status:
            case JobStatus.VALIDATING_FILES:
                self._check(lease)
            case JobStatus.QUEUED:
                self._start_if_room(lease)
            case JobStatus.RUNNING:
                self._follow(lease)

    # Checking

    def _check(self, lease: Lease) -> None:
        job = lease.job
        check = self._checks.get(job.id)
        if check is None:
            try:
                origin = resolve_origin(self.ctx, job.project_id, job.request.model)
            except SmedjeError as problem:
                self._fail(lease, JobError(code=problem.code, message=problem.message, param=problem.param))
                return
            self._say(job, _validating(job))
            self._checks[job.id] = self._pool.submit(check_job, self.ctx, job, origin)
            self._checks[job.id].add_done_callback(lambda done: self.ctx.wake.set())
            self._get_ready(origin.base_model)
            return
        if not check.done():
            return
        del self._checks[job.id]
        found = check.result()
        if isinstance(found, JobError):
            self._fail(lease, found)
            return
        with self.ctx.database.transaction() as tx:
            queued = advance(job, JobStatus.QUEUED, now=self.ctx.seconds())
            job_rows.save_job(tx, queued, was=job.status, fence=lease.fence)
            message = "Files validated, moving job to queued state"
            job_rows.insert_events(tx, [job_event(job.id, now=self.ctx.seconds(), message=message)])
            moved(self.ctx, tx, queued)
        self.ctx.wake.set()

    def _get_ready(self, base_model: str) -> None:
        """Hold the base model of a job that is being checked, or that has just ended, unless runs need the machine."""
        with self.ctx.database.transaction() as tx:
            idle = not run_rows.list_active_runs(tx)
        if self.warm is not None and idle:
            with suppress(NotFound):
                self.warm.keep(str(installed_folder(self.ctx.home, base_model)))

    def _say(self, job: FineTuningJob, message: str) -> None:
        with self.ctx.database.transaction() as tx:
            job_rows.insert_events(tx, [job_event(job.id, now=self.ctx.seconds(), message=message)])

    def _fail(self, lease: Lease, error: JobError, run: Run | None = None) -> None:
        job, now = lease.job, self.ctx.seconds()
        failed = advance(job, JobStatus.FAILED, now=now, error=error)
        with self.ctx.database.transaction() as tx:
            job_rows.save_job(tx, failed, was=job.status, fence=lease.fence)
            job_rows.insert_events(
                tx, [job_event(job.id, now=now, message=f"The job failed: {error.message}", level="error")]
            )
            if run is not None:
                run_rows.save_run(tx, replace(run, state=RunState.FAILED, ended_at=now))
            moved(self.ctx, tx, failed)

    # Starting

    def _start_if_room(self, lease: Lease) -> None:
        """Start a queued job's next run unless its last one is still ending, or no slot or memory is free."""
        with self.ctx.database.transaction() as tx:
            active = run_rows.list_active_runs(tx)
        if len(active) >= self.limits.max_running_jobs or any(run.job_id == lease.job.id for run in active):
            return
        if self._waits_for_budget(lease.job):
            return
        spec = self._next_spec(lease.job)
        need = job_memory(self.ctx, lease.job.id, spec)
        taken = sum(int(run.handle.get("memory_bytes", 0)) for run in active)
        if active and need + taken > self.limits.memory_bytes:
            return
        self._start(lease, spec, need)

    def _waits_for_budget(self, job: FineTuningJob) -> bool:
        """Whether the project's month has nothing left for this job; said once in its story. What runs goes on."""
        reason = used_up(self.ctx, job.project_id, job.id)
        if reason is None:
            return False
        with self.ctx.database.transaction() as tx:
            [last] = job_rows.list_events(tx, job.id, limit=1)
        if last.message != reason:
            with self.ctx.database.transaction() as tx:
                waits = job_event(job.id, now=self.ctx.seconds(), message=reason, level="warn")
                job_rows.insert_events(tx, [waits])
                moved(self.ctx, tx, job, action="job.waits_for_budget")
        return True

    def _next_spec(self, job: FineTuningJob) -> TrainingSpec:
        with self.ctx.database.transaction() as tx:
            runs = run_rows.list_runs(tx, job.id)
        origin = resolve_origin(self.ctx, job.project_id, job.request.model)
        earlier = [run.id for run in reversed(runs)]
        return build_spec(self.ctx, job, origin, threads=self.limits.threads, earlier_runs=earlier)

    def _start(self, lease: Lease, spec: TrainingSpec, memory_bytes: int) -> None:
        """Record the run first, then launch it: a server that dies in between finds the run and tries again."""
        job, now = lease.job, self.ctx.seconds()
        run = Run(
            id=new_id(RUN),
            job_id=job.id,
            attempt=1 + len(spec.earlier_runs),
            state=RunState.STARTING,
            executor=self.executor.name,
            handle={"memory_bytes": memory_bytes},
            started_at=now,
        )
        RunFolder(self.ctx.objects, run.id).write_spec(spec_to_json(spec))
        running = advance(job, JobStatus.RUNNING, now=now) if job.status is JobStatus.QUEUED else job
        with self.ctx.database.transaction() as tx:
            job_rows.save_job(tx, running, was=job.status, fence=lease.fence)
            run_rows.insert_run(tx, run)
            if run.attempt == 1:
                job_rows.insert_events(tx, [job_event(job.id, now=now, message="Fine-tuning job started")])
            moved(self.ctx, tx, running, action="job.started")
        log_path = self.ctx.home / "logs" / f"{run.id}.log"
        # A run that changes the base model's weights needs memory of its own for them.
        warm = None if spec.lora.full else self.warm
        handle = None if warm is None else warm.start(run.id, spec.base_folder, log=log_path)
        if handle is None:
            handle = self.executor.start(run.id, [*self.command, "--run", run.id], env=self.worker_env, log=log_path)
        if handle:
            with self.ctx.database.transaction() as tx:
                run_rows.save_run(tx, replace(run, state=RunState.RUNNING, handle={**run.handle, **handle}))

    # Following

    def _follow(self, lease: Lease) -> None:
        with self.ctx.database.transaction() as tx:
            run = run_rows.latest_run(tx, lease.job.id)
            project = project_rows.get_project(tx, lease.job.project_id)
        assert run is not None, "a running job has a run"
        assert project is not None, "a job belongs to a project"
        if run.state not in ACTIVE:
            spec = self._next_spec(lease.job)
            self._start(lease, spec, job_memory(self.ctx, lease.job.id, spec))
            return
        run = self._find_worker(run)
        alive = self._is_alive(run)
        # Read after looking at the process: a result written in between is then seen, never taken for a loss.
        result = RunFolder(self.ctx.objects, run.id).read_result()
        with self.ctx.database.transaction() as tx:
            job, run = take_in(self.ctx, tx, lease.job, run, project_name=project.name)
            if result is None:
                job_rows.save_job(tx, job, was=JobStatus.RUNNING, fence=lease.fence)
        if result is not None:
            self._finish(Lease(job=job, fence=lease.fence), run, result, project.name)
        elif not alive:
            self._lost(Lease(job=job, fence=lease.fence), run)

    def _finish(self, lease: Lease, run: Run, result: RunResult, project_name: str) -> None:
        job, now = lease.job, self.ctx.seconds()
        if result.outcome is Outcome.FAILED:
            code, message = result.error_code or "server_error", result.error_message or "The run failed."
            self._fail(lease, JobError(code=code, message=message, param=result.error_param), run)
            return
        if result.outcome is not Outcome.SUCCEEDED:
            # Paused or cancelled, then resumed before the run had ended: the saved state is continued by a new run.
            with self.ctx.database.transaction() as tx:
                run_rows.save_run(tx, replace(run, state=RunState.FINISHED, ended_at=now))
            return
        with self.ctx.database.transaction() as tx:
            checkpoint = model_checkpoint(tx, job, result, project_name=project_name)
        # Rendering samples takes a while: outside the transaction that makes the model exist.
        certify(self.ctx, job, checkpoint.key)
        compared = comparison_event(self.ctx, job, result)
        with self.ctx.database.transaction() as tx:
            if compared is not None:
                job_rows.insert_events(tx, [compared])
            done = record_success(self.ctx, tx, job, result, project_name=project_name)
            done = advance(done, JobStatus.SUCCEEDED, now=now)
            job_rows.save_job(tx, done, was=JobStatus.RUNNING, fence=lease.fence)
            run_rows.save_run(tx, replace(run, state=RunState.FINISHED, ended_at=now))
            moved(self.ctx, tx, done)
        if done.request.integrations:
            # Sending may take minutes; nothing waits for it, and the figures stay in the rows.
            threading.Thread(target=write_integrations, args=(self.ctx, done, self.trackers), daemon=True).start()
        self._get_ready(job.request.base_model)
        self.ctx.wake.set()

    def _lost(self, lease: Lease, run: Run) -> None:
        """The worker went away without a result: try again from its saved state, but not for ever."""
        now = self.ctx.seconds()
        if run.state is RunState.RUNNING:
            self.executor.stop(run.handle, grace_seconds=0)
        unfinished(self.ctx)
        with self.ctx.database.transaction() as tx:
            run_rows.save_run(tx, replace(run, state=RunState.LOST, ended_at=now))
            fruitless = 0
            for earlier in reversed(run_rows.list_runs(tx, lease.job.id)):
                if earlier.state is not RunState.LOST or RunFolder(self.ctx.objects, earlier.id).has_state():
                    break
                fruitless += 1
        if fruitless >= MAX_FRUITLESS_RUNS:
            message = f"The training worker stopped {fruitless} times without any progress; its log is {run.id}.log."
            self._fail(lease, JobError(code="worker_lost", message=message))
            return
        self._say(lease.job, "The training worker stopped unexpectedly; continuing from its last saved state")
        log.warning("run %s of job %s was lost", run.id, lease.job.id)

    def _find_worker(self, run: Run) -> Run:
        """A run whose handle was never saved (the server died in between) is found by its own heartbeat."""
        if run.state is RunState.RUNNING:
            return run
        pulse = RunFolder(self.ctx.objects, run.id).read_heartbeat()
        if pulse is None:
            return run
        handle = {**run.handle, **self.executor.adopt(int(pulse["pid"]))}
        found = replace(run, state=RunState.RUNNING, handle=handle)
        with self.ctx.database.transaction() as tx:
            run_rows.save_run(tx, found)
        return found

    def _is_alive(self, run: Run) -> bool:
        """Alive, or started so recently that it may not have said so yet, or waiting for its base model."""
        if run.state is RunState.STARTING:
            reading = self.warm is not None and self.warm.reading
            return reading or self.ctx.now() - run.started_at < SILENCE_SECONDS
        return self.executor.alive(run.handle)

    # Stopping

    def _stop_unwanted_runs(self) -> None:
        """Ask runs of paused and cancelled jobs to end, close those that have, kill those that do not listen."""
        with self.ctx.database.transaction() as tx:
            pairs = [(run, job_rows.get_any_job(tx, run.job_id)) for run in run_rows.list_active_runs(tx)]
        for run, job in pairs:
            wanted = _control(job)
            if wanted is None:
                continue
            folder = RunFolder(self.ctx.objects, run.id)
            if folder.requested() is not wanted:
                folder.request(wanted)
            run = self._find_worker(run)
            gone = not self._is_alive(run)
            late = job.finished_at is not None and self.ctx.now() - job.finished_at > STOP_GRACE_SECONDS
            if late and not gone and run.state is RunState.RUNNING:
                self.executor.stop(run.handle, grace_seconds=1)
                gone = True
                unfinished(self.ctx)
            if folder.read_result() is not None or gone:
                self._close(run, job)

    def _close(self, run: Run, job: FineTuningJob) -> None:
        """End a run that was asked to; what it said before it paused still counts."""
        with self.ctx.database.transaction() as tx:
            project = project_rows.get_project(tx, job.project_id)
            if project is not None and job.status is not JobStatus.CANCELLED:
                _, run = take_in(self.ctx, tx, job, run, project_name=project.name)
            run_rows.save_run(tx, replace(run, state=RunState.FINISHED, ended_at=self.ctx.seconds()))
            if job.status is JobStatus.CANCELLED:
                meter(self.ctx, tx, job)


def _control(job: FineTuningJob) -> Control | None:
    """What an active run of this job should be asked to do."""
    if job.status in (JobStatus.PAUSED, JobStatus.QUEUED):
        return Control.PAUSE
    if job.status is JobStatus.RUNNING:
        return None
    return Control.CANCEL


def _validating(job: FineTuningJob) -> str:
    second = f" and validation file: {job.request.validation_file}" if job.request.validation_file else ""
    return f"Validating training file: {job.request.training_file}{second}"
