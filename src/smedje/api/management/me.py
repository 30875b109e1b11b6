"""Who is calling, on the wire: the key or browser session, its member, roles, and what they allow here."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from smedje.api.auth import SESSION_COOKIE, AnyCaller, Caller, cookie_name
from smedje.api.bodies import Body
from smedje.api.paging import refuse_unknown_query
from smedje.api.state import Using
from smedje.domain.projects import Principal
from smedje.errors import InvalidRequest
from smedje.services import people, sessions
from smedje.services.context import Context

router = APIRouter(prefix="/api/me", tags=["me"])


class MeProject(BaseModel):
    """The project that requests act in, unless they name another."""

    id: str
    name: str
    hub_id: str


class MeRole(BaseModel):
    """A role and where it holds. Neither hub nor project: the whole server."""

    role: str
    role_name: str
    hub_id: str | None
    hub: str | None
    project_id: str | None
    project: str | None


class MeObject(BaseModel):
    """Who is calling. kind: api_key, or session. id: the key's or session's; null for a session without any role.

    permissions: those in the project. Both project and permissions are empty for somebody who has no role yet.
    """

    id: str | None
    object: Literal["me"] = "me"
    kind: str
    user_id: str | None
    email: str | None
    name: str | None
    project: MeProject | None
    roles: list[MeRole]
    permissions: list[str]
    expires_at: int | None


class MeUpdate(Body):
    """project: id or name of the project that this session acts in from now on."""

    project: Annotated[str, Field(min_length=1, max_length=256)]


class PasswordBody(Body):
    """The password so far, and the one from now on."""

    current: Annotated[str, Field(max_length=1024)]
    new: Annotated[str, Field(max_length=1024)]


class PasswordChanged(BaseModel):
    """The answer to a change of password."""

    object: Literal["me.password"] = "me.password"
    changed: bool = True


@router.get("")
def get_me(caller: AnyCaller, ctx: Using, request: Request) -> MeObject:
    """Who is calling, and what they may do. Needs no role."""
    refuse_unknown_query(request, frozenset())
    return _to_object(ctx, caller)


@router.patch("")
def update_me(caller: AnyCaller, ctx: Using, request: Request, body: MeUpdate) -> MeObject:
    """Let this browser session act in another project from now on. A key names one in the header OpenAI-Project."""
    _session(caller)
    secret = request.cookies.get(cookie_name(request, SESSION_COOKIE), "")
    found = sessions.choose_project(ctx, secret, body.project)
    return _to_object(ctx, Caller(principal=found.principal, signed_in=found))


@router.put("/password")
def change_password(caller: AnyCaller, ctx: Using, body: PasswordBody) -> PasswordChanged:
    """Set a new password; other sessions end."""
    sessions.change_password(ctx, _session(caller), body.current, body.new)
    return PasswordChanged()


def _session(caller: Caller) -> sessions.SignedIn:
    if caller.signed_in is None:
        raise InvalidRequest(
            "This is for people who are signed in with a browser, and this request came with an API key.",
            code="not_a_session",
        )
    return caller.signed_in


def _to_object(ctx: Context, caller: Caller) -> MeObject:
    principal, signed_in = caller.principal, caller.signed_in
    member = people.member_of(ctx, principal) if signed_in is None else signed_in.member
    held = people.roles_of_caller(ctx, principal) if principal else []
    return MeObject(
        id=principal.key_id if principal else None,
        kind="api_key" if signed_in is None else "session",
        user_id=member.id if member else None,
        email=member.email if member else None,
        name=member.name if member else None,
        project=_project(principal),
        roles=[
            MeRole(
                role=one.word,
                role_name=one.title,
                hub_id=one.hub_id,
                hub=one.hub,
                project_id=one.project_id,
                project=one.project,
            )
            for one in held
        ],
        permissions=people.permissions_here(principal) if principal else [],
        expires_at=signed_in.session.expires_at if signed_in else None,
    )


def _project(principal: Principal | None) -> MeProject | None:
    if principal is None:
        return None
    return MeProject(id=principal.project.id, name=principal.project.name, hub_id=principal.project.hub_id)
