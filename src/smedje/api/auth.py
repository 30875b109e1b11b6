"""Who calls and what the route demands: a key in `Authorization: Bearer` or `api-key`, one permission per route.

Knows headers; knows nothing of how keys are kept. A route that declares no permission stops the server from starting.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from smedje.api.state import context
from smedje.domain.audit import Actor
from smedje.domain.projects import HUB_LEVEL, Permission, Principal
from smedje.errors import AuthenticationFailed
from smedje.services import projects
from smedje.services.access import demand, demand_here

# Routes that anyone may call. Nothing else may lack a permission.
PUBLIC_ROUTES = frozenset({"/healthz", "/readyz", "/openapi.json"})


@dataclass(frozen=True)
class Requires:
    """A dependency: the caller, who must hold `permission`."""

    permission: Permission

    def __call__(self, request: Request) -> Principal:
        """The caller. Raises AuthenticationFailed, PermissionDenied, and Conflict in an archived project.

        A permission that concerns hubs is looked at more closely by the service, which knows the hub in question.
        """
        caller = projects.authenticate(context(request), _secret(request), wanted=request.headers.get("openai-project"))
        request.state.actor = Actor(
            key_id=caller.key_id,
            member_id=caller.member_id,
            address=request.client.host if request.client else None,
            request_id=request.scope.get("smedje.request_id"),
        )
        if self.permission not in HUB_LEVEL:
            demand_here(caller, self.permission)
        elif not caller.may_somewhere(self.permission):
            demand(caller, self.permission, hub_id=caller.project.hub_id, project_id=caller.project.id)
        return caller


CanReadFiles = Annotated[Principal, Depends(Requires(Permission.FILES_READ))]
CanWriteFiles = Annotated[Principal, Depends(Requires(Permission.FILES_WRITE))]
CanReadJobs = Annotated[Principal, Depends(Requires(Permission.JOBS_READ))]
CanWriteJobs = Annotated[Principal, Depends(Requires(Permission.JOBS_WRITE))]
CanReadModels = Annotated[Principal, Depends(Requires(Permission.MODELS_READ))]
CanDeleteModels = Annotated[Principal, Depends(Requires(Permission.MODELS_DELETE))]
CanReadDeployments = Annotated[Principal, Depends(Requires(Permission.DEPLOYMENTS_READ))]
CanWriteDeployments = Annotated[Principal, Depends(Requires(Permission.DEPLOYMENTS_WRITE))]
CanChat = Annotated[Principal, Depends(Requires(Permission.CHAT))]
CanReadUsage = Annotated[Principal, Depends(Requires(Permission.USAGE_READ))]
CanReadHubs = Annotated[Principal, Depends(Requires(Permission.HUBS_READ))]
CanWriteHubs = Annotated[Principal, Depends(Requires(Permission.HUBS_WRITE))]
CanCreateProjects = Annotated[Principal, Depends(Requires(Permission.PROJECTS_CREATE))]
CanReadMembers = Annotated[Principal, Depends(Requires(Permission.MEMBERS_READ))]
CanWriteMembers = Annotated[Principal, Depends(Requires(Permission.MEMBERS_WRITE))]
CanReadKeys = Annotated[Principal, Depends(Requires(Permission.KEYS_READ))]
CanWriteKeys = Annotated[Principal, Depends(Requires(Permission.KEYS_WRITE))]
CanReadQuotas = Annotated[Principal, Depends(Requires(Permission.QUOTAS_READ))]
CanWriteQuotas = Annotated[Principal, Depends(Requires(Permission.QUOTAS_WRITE))]
CanWritePrices = Annotated[Principal, Depends(Requires(Permission.PRICES_WRITE))]
CanReadAudit = Annotated[Principal, Depends(Requires(Permission.AUDIT_READ))]


def check_routes(app: FastAPI) -> None:
    """Raises RuntimeError naming every route that is neither public nor declares a permission."""
    bare = [
        found.path or repr(found.original_route)
        for found in iter_route_contexts(app.routes)
        if found.path not in PUBLIC_ROUTES and not _declares(getattr(found.original_route, "dependant", None))
    ]
    if bare:
        raise RuntimeError(f"These routes declare no permission: {', '.join(sorted(bare))}")


def _declares(dependant: Dependant | None) -> bool:
    if dependant is None:
        return False
    return isinstance(dependant.call, Requires) or any(_declares(part) for part in dependant.dependencies)


def _secret(request: Request) -> str:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    secret = request.headers.get("api-key", "").strip()
    if secret:
        return secret
    raise AuthenticationFailed(
        "This request carries no API key. Send it as `Authorization: Bearer KEY` or `api-key: KEY`.",
        code="missing_api_key",
    )
