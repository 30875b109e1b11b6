"""The composition root: from settings to a running server. The only place that knows every part by name."""

import asyncio
import logging
import os
import secrets
import shutil
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI

from smedje.api.app import create_app
from smedje.api.state import Services
from smedje.errors import InvalidRequest
from smedje.executors.base import worker_environment
from smedje.executors.local import LocalExecutor
from smedje.executors.warm import WarmWorkers
from smedje.modeling.folder import installed_folder
from smedje.objects.machine import gpu, training_memory, usable_cores
from smedje.objects.store import open_objects
from smedje.services.chat import Chat
from smedje.services.context import Context
from smedje.services.deliveries import Courier
from smedje.services.files import sweep
from smedje.services.integrations import Trackers
from smedje.services.outbound import parse_outbound
from smedje.services.projects import BootstrapResult, ensure_defaults
from smedje.services.scheduler import Limits, Scheduler
from smedje.services.upkeep import Upkeep
from smedje.services.uploads import sweep_uploads
from smedje.serving.supervisor import EnginePool, EngineSettings
from smedje.settings import ServingSettings, Settings
from smedje.store.database import Database

if TYPE_CHECKING:
    from smedje.services.oidc import Provider

STOP_SECONDS = 15.0
# vLLM compiles and profiles before it answers: minutes on a CPU.
VLLM_START_SECONDS = 900.0
# How often an engine's threads look for work before they sleep: some tens of microseconds, as long as an operation.
ENGINE_SPINS = 5000


def build_app(settings: Settings, *, hosts: Iterable[str] = ()) -> FastAPI:
    """The server: database brought up to date, defaults made, leftovers swept; engines and scheduler start with it.

    hosts: names that clients may use besides the local ones, "*" for any.
    Raises SmedjeError for settings that cannot work (a database that cannot be opened, a bad bootstrap key).
    """
    configure_logging()
    ctx = open_context(settings)
    announce(ensure_defaults(ctx, settings.bootstrap_api_key, ctx.location))
    sweep(ctx)
    sweep_uploads(ctx)
    executor = LocalExecutor()
    pool = EnginePool(executor, _engine_settings(settings))
    chat = Chat(ctx, pool)
    scheduler = _scheduler(ctx, settings, executor)
    warm_folder = installed_folder(ctx.home, settings.warm_model) if settings.warm_model else None

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        stop = threading.Event()
        if warm_folder is not None and scheduler.warm is not None:
            scheduler.warm.keep(str(warm_folder))
        loops = {
            "scheduler": scheduler.run_forever,
            "webhooks": Courier(ctx).run_forever,
            "upkeep": Upkeep(ctx).run_forever,
        }
        threads = [threading.Thread(target=loop, args=(stop,), name=name, daemon=True) for name, loop in loops.items()]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            ctx.wake.set()
            await chat.close()
            await pool.close()
            for thread in threads:
                await asyncio.to_thread(thread.join, STOP_SECONDS)
            ctx.database.close()

    services = Services(context=ctx, chat=chat, provider=_provider(settings), public_url=settings.public_url)
    return create_app(services, hosts=hosts, running=running)


def open_context(settings: Settings) -> Context:
    """Database (migrated) and object storage of these settings."""
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = Database(settings.database_url)
    database.migrate()
    return Context(
        database=database,
        objects=open_objects(settings.objects_url),
        home=settings.home,
        location=settings.location,
        device=_device(settings.device),
        outbound=parse_outbound(settings.outbound_allow),
    )


def _device(wanted: str) -> str:
    """The device that jobs train on. Raises InvalidRequest for a GPU that is not there."""
    if wanted == "cuda" and gpu() is None:
        raise InvalidRequest(
            "SMEDJE_DEVICE is cuda and this machine shows no NVIDIA GPU. Install its driver, or set auto or cpu.",
            code="invalid_setting",
            param="SMEDJE_DEVICE",
        )
    return "cuda" if wanted != "cpu" and gpu() is not None else "cpu"


def announce(made: BootstrapResult) -> None:
    """Show a generated owner key, this once; its file keeps it."""
    if made.new_secret is not None:
        print(f"owner key (kept in {made.key_file}): {made.new_secret}", file=sys.stderr, flush=True)


class EventLine(logging.Formatter):
    """A log record as one line that machines can read: `timestamp='…' level='info' event='…'`, then its own fields."""

    # What every record has; the rest is what the event was told with.
    USUAL = frozenset(vars(logging.makeLogRecord({})))

    def format(self, record: logging.LogRecord) -> str:
        """The line; the trace of an exception is a field of it."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        told = {"timestamp": when, "level": record.levelname.lower(), "event": record.getMessage()}
        told |= {name: value for name, value in vars(record).items() if name not in self.USUAL}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return " ".join(f"{name}={value!r}" for name, value in told.items())


def configure_logging() -> None:
    """One line an event on standard error, so that standard output stays the command's own."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(EventLine())
    ours = logging.getLogger("smedje")
    ours.setLevel(logging.INFO)
    ours.handlers = [lines]
    ours.propagate = False


def _scheduler(ctx: Context, settings: Settings, executor: LocalExecutor) -> Scheduler:
    storage = ("--objects", settings.objects_url, "--cache", str(settings.home / "cache"))
    env = worker_environment(os.environ, objects_url=settings.objects_url)
    return Scheduler(
        ctx=ctx,
        executor=executor,
        limits=Limits(
            max_running_jobs=settings.max_running_jobs,
            memory_bytes=training_memory(ctx.device),
            threads=settings.threads or usable_cores(),
            lease_seconds=settings.lease_seconds,
        ),
        owner=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
        command=(sys.executable, "-m", "smedje.training.worker", *storage),
        worker_env=env,
        trackers=Trackers(wandb_api_key=settings.wandb_api_key),
        warm=WarmWorkers(
            command=(sys.executable, "-m", "smedje.training.warm", *storage),
            env=env,
            log=settings.home / "logs" / "warm.log",
            idle_seconds=settings.warm_seconds,
        ),
    )


def _provider(settings: Settings) -> "Provider | None":
    """The identity provider, if the settings name one; the packages for it are loaded only then."""
    if not settings.oidc_issuer:
        return None
    from smedje.services.oidc import Provider, ProviderSettings, parse_roles

    return Provider(
        ProviderSettings(
            issuer=settings.oidc_issuer,
            client_id=settings.oidc_client_id,
            client_secret=settings.oidc_client_secret,
            domains=tuple(one.strip().lower() for one in settings.oidc_domains.split(",") if one.strip()),
            roles=parse_roles(settings.oidc_roles),
        )
    )


def _engine_settings(settings: Settings) -> EngineSettings:
    plain = EngineSettings(
        objects_url=settings.objects_url,
        cache=settings.home / "cache",
        logs=settings.home / "logs",
        threads=settings.threads,
        idle_seconds=settings.serving.engine_idle_seconds,
        env=worker_environment(os.environ, objects_url=settings.objects_url),
    )
    if settings.serving.engine == "torch":
        serving = settings.serving
        options = ("--numbers", serving.serving_weights, "--merged", serving.serving_merged)
        return replace(plain, command=(*plain.command, *options), env={**_waiting(os.environ), **plain.env})
    return _with_vllm(plain, settings.serving)


def _waiting(environ: Mapping[str, str]) -> dict[str, str]:
    """How an engine's threads wait for each other, unless the operator has said it."""
    return {} if "OMP_WAIT_POLICY" in environ else {"GOMP_SPINCOUNT": str(ENGINE_SPINS)}


def _with_vllm(plain: EngineSettings, serving: ServingSettings) -> EngineSettings:
    """Engines that are vLLM's. Raises InvalidRequest when there is no such program."""
    program = shutil.which(serving.vllm)
    if program is None:
        raise InvalidRequest(
            f"SMEDJE_ENGINE is vllm and there is no program {serving.vllm!r}. Install vLLM in an environment of its "
            "own and set SMEDJE_VLLM to the path of its program.",
            code="invalid_setting",
            param="SMEDJE_VLLM",
        )
    if serving.serving_weights != "fp32":
        raise InvalidRequest(
            "SMEDJE_SERVING_WEIGHTS is for our own engine and SMEDJE_ENGINE is vllm. Unset it, and give vLLM its own "
            "option, such as --quantization, in SMEDJE_VLLM_OPTIONS.",
            code="invalid_setting",
            param="SMEDJE_SERVING_WEIGHTS",
        )
    command = (sys.executable, "-m", "smedje.serving.vllm_worker", "--vllm", str(Path(program).resolve()))
    theirs = {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
    return replace(
        plain,
        command=(*command, f"--vllm-options={serving.vllm_options}"),
        start_seconds=VLLM_START_SECONDS,
        env={**theirs, **plain.env},
    )
