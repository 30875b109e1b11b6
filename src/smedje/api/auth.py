"""Who calls and what the route demands: a key in `Authorization: Bearer` or `api-key`, or a browser's session cookie.

Knows headers and cookies; knows nothing of how keys are kept. A route that declares no permission stops the server from
starting.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from smedje.api.state import context, services
from smedje.domain.audit import Actor
from smedje.domain.projects import HUB_LEVEL, Permission, Principal
from smedje.errors import AuthenticationFailed, PermissionDenied
from smedje.services import projects, sessions
from smedje.services.access import demand, demand_here
from smedje.services.sessions import SignedIn

# Routes that anyone may call. Nothing else may lack a permission.
PUBLIC_ROUTES = frozenset({"/healthz", "/readyz", "/openapi.json"})
# Pages by which somebody becomes known, or stops being so.
SIGN_IN_ROUTES = frozenset({"/login", "/logout", "/login/provider", "/login/provider/callback"})

# Methods that change nothing; a page elsewhere may cause them, and cannot read the answer.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SESSION_COOKIE = "smedje_session"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who is calling. principal: what they may do where; None for somebody signed in who has no role anywhere.

    signed_in: the browser session, None for a key.
    """

    principal: Principal | None
    signed_in: SignedIn | None = None


@dataclass(frozen=True)
class Identified:
    """A dependency: the caller, who must be known and needs no role."""

    def __call__(self, request: Request) -> Caller:
        """The caller. Raises AuthenticationFailed, and PermissionDenied for a foreign project or page."""
        return identify(request)


@dataclass(frozen=True)
class Requires:
    """A dependency: the caller, who must hold `permission`."""

    permission: Permission

    def __call__(self, request: Request) -> Principal:
        """The caller. Raises AuthenticationFailed, PermissionDenied, and Conflict in an archived project.

        A permission that concerns hubs is looked at more closely by the service, which knows the hub in question.
        """
        found = identify(request)
        if found.principal is None:
            assert found.signed_in is not None
            raise sessions.no_role(found.signed_in.member)
        caller = found.principal
        if self.permission not in HUB_LEVEL:
            demand_here(caller, self.permission)
        elif not caller.may_somewhere(self.permission):
            demand(caller, self.permission, hub_id=caller.project.hub_id, project_id=caller.project.id)
        return caller


AnyCaller = Annotated[Caller, Depends(Identified())]
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
CanReadUsers = Annotated[Principal, Depends(Requires(Permission.USERS_READ))]
CanWriteUsers = Annotated[Principal, Depends(Requires(Permission.USERS_WRITE))]
CanReadKeys = Annotated[Principal, Depends(Requires(Permission.KEYS_READ))]
CanWriteKeys = Annotated[Principal, Depends(Requires(Permission.KEYS_WRITE))]
CanReadQuotas = Annotated[Principal, Depends(Requires(Permission.QUOTAS_READ))]
CanWriteQuotas = Annotated[Principal, Depends(Requires(Permission.QUOTAS_WRITE))]
CanWritePrices = Annotated[Principal, Depends(Requires(Permission.PRICES_WRITE))]
CanReadAudit = Annotated[Principal, Depends(Requires(Permission.AUDIT_READ))]
CanReadProject = Annotated[Principal, Depends(Requires(Permission.PROJECT_READ))]
CanWriteProject = Annotated[Principal, Depends(Requires(Permission.PROJECT_WRITE))]
CanReadWebhooks = Annotated[Principal, Depends(Requires(Permission.WEBHOOKS_READ))]
CanWriteWebhooks = Annotated[Principal, Depends(Requires(Permission.WEBHOOKS_WRITE))]
CanReadErasures = Annotated[Principal, Depends(Requires(Permission.ERASURES_READ))]
CanWriteErasures = Annotated[Principal, Depends(Requires(Permission.ERASURES_WRITE))]


def check_routes(app: FastAPI) -> None:
    """Raises RuntimeError naming every route that is neither public nor declares a permission."""
    bare = [
        found.path or repr(found.original_route)
        for found in iter_route_contexts(app.routes)
        if found.path not in PUBLIC_ROUTES | SIGN_IN_ROUTES
        and not _declares(getattr(found.original_route, "dependant", None))
    ]
    if bare:
        raise RuntimeError(f"These routes declare no permission: {', '.join(sorted(bare))}")


def _declares(dependant: Dependant | None) -> bool:
    if dependant is None:
        return False
    return isinstance(dependant.call, Requires | Identified) or any(_declares(part) for part in dependant.dependencies)


def identify(request: Request) -> Caller:
    """Who sent a request, by key or by cookie; a key counts where both are. Notes them for the audit log."""
    wanted, key = request.headers.get("openai-project"), _key(request)
    if key is not None:
        found = Caller(principal=projects.authenticate(context(request), key, wanted=wanted))
    elif cookie := request.cookies.get(cookie_name(request, SESSION_COOKIE)):
        if request.method not in SAFE_METHODS:
            refuse_foreign_page(request)
        signed_in = sessions.authenticate(context(request), cookie, wanted=wanted)
        found = Caller(principal=signed_in.principal, signed_in=signed_in)
    else:
        raise AuthenticationFailed(
            "This request carries no API key. Send it as `Authorization: Bearer KEY` or `api-key: KEY`, or sign in at "
            "/login with a browser.",
            code="missing_api_key",
        )
    member = None if found.signed_in is None else found.signed_in.member.id
    request.state.actor = Actor(
        key_id=found.principal.key_id if found.principal else None,
        member_id=found.principal.member_id if found.principal else member,
        address=request.client.host if request.client else None,
        request_id=request.scope.get("smedje.request_id"),
    )
    return found


def cookie_name(request: Request, name: str) -> str:
    """A cookie's name here: over TLS with the prefix that keeps other hosts and plain HTTP from setting it."""
    return f"__Host-{name}" if over_tls(request) else name


def over_tls(request: Request) -> bool:
    """Whether browsers reach this server over TLS, by what the request or the server's own settings say."""
    return request.url.scheme == "https" or services(request).public_url.startswith("https://")


def refuse_foreign_page(request: Request) -> None:
    """Raises PermissionDenied unless the browser says that a page of this server caused the request.

    Sec-Fetch-Site is what every current browser says to a secure or local address; Origin is what it says to others.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin", "")
    same = site in ("same-origin", "none")
    if site is None:
        host = request.headers.get("host")
        ours = services(request).public_url.rstrip("/")
        same = origin in (f"https://{host}", f"http://{host}") or (bool(ours) and origin == ours)
    if not same:
        raise PermissionDenied(
            "A browser's session may change something only from a page of this server. The request says "
            f"Sec-Fetch-Site: {site or 'nothing'} and Origin: {origin[:100] or 'nothing'}. Programs use an API key.",
            code="cross_site_request",
        )


def _key(request: Request) -> str | None:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return request.headers.get("api-key", "").strip() or None
