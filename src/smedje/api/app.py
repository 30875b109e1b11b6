"""The application: routes, errors and the outer layer together. Knows no settings; `wiring` hands it the services."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

import smedje
from smedje.api import errors, health, sign_in
from smedje.api.auth import check_routes
from smedje.api.azure import authoring, inference
from smedje.api.management import (
    audit,
    catalog,
    costs,
    deployment_keys,
    deployments,
    erasures,
    estimate,
    file_versions,
    hubs,
    keys,
    locations,
    me,
    members,
    metrics,
    model_files,
    projects,
    quotas,
    reports,
    retention,
    roles,
    users,
)
from smedje.api.middleware import Edge
from smedje.api.openai import audit_logs, chat, completions, files, fine_tuning, models, organization, uploads, webhooks
from smedje.api.state import Services
from smedje.api.uploads import BODY_BYTES

# The longest JSON body: a chat of 128k tokens is under a mebibyte. Uploads have their own limit.
JSON_BYTES = 16 * 1024 * 1024

Running = Callable[[], AbstractAsyncContextManager[None]]


def create_app(services: Services, *, hosts: Iterable[str] = (), running: Running | None = None) -> FastAPI:
    """The API over these services.

    hosts: names that clients may use besides the local ones. running: entered when the server starts and left when it
    stops. Raises RuntimeError when a route declares no permission.
    """
    app = FastAPI(
        title="smedje",
        version=smedje.__version__,
        description="Fine-tuning, serving and evaluation of small language models on your own machines.",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan(running),
    )
    app.state.services = services
    for part in (health, metrics, files, uploads, fine_tuning, models, chat, completions, deployment_keys, deployments):
        app.include_router(part.router)
    for part in (catalog, estimate, model_files, reports, file_versions, hubs, projects, members, keys, quotas, costs):
        app.include_router(part.router)
    for part in (audit, webhooks, retention, erasures, locations, organization):
        app.include_router(part.router)
    for part in (roles, users, me, audit_logs, sign_in, inference, authoring):
        app.include_router(part.router)
    # Azure's v1 paths are OpenAI's behind a prefix; one schema describes both.
    for part in (files, uploads, fine_tuning, models, chat, completions):
        app.include_router(part.router, prefix="/openai", include_in_schema=False)
    errors.install(app)
    forms = dict.fromkeys((files.PATH, f"/openai{files.PATH}", authoring.FILES), BODY_BYTES)
    parts = dict.fromkeys((uploads.PART_PATH, f"/openai{uploads.PART_PATH}"), uploads.PART_BODY_BYTES)
    limits = {"": JSON_BYTES, "/login": sign_in.FORM_BYTES, **forms, **parts}
    app.add_middleware(Edge, hosts=tuple(hosts), body_bytes=limits, meters=services.chat.meters)
    check_routes(app)
    return app


def _lifespan(running: Running | None) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Pages that wiring added after create_app are held to the same rule.
        check_routes(app)
        if running is None:
            yield
            return
        async with running():
            yield

    return lifespan
