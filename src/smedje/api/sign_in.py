"""Signing in and out with a browser: the form, the identity provider's round trip, and the session's cookie.

Knows forms, cookies and redirects; what is right to let in stands in `services/sessions.py` and
`services/provider_sign_in.py`.
"""

import base64
from dataclasses import replace
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from smedje.api.auth import SESSION_COOKIE, cookie_name, over_tls, refuse_foreign_page
from smedje.api.errors import status_of
from smedje.api.pages import HEADERS, Account, SignInForm, account_page, sign_in_page
from smedje.api.state import Services, services
from smedje.domain.audit import Actor
from smedje.errors import AuthenticationFailed, LimitExceeded, NotFound, SmedjeError
from smedje.services import people, sessions
from smedje.services.context import Context

# The longest form: three fields of a few hundred characters, percent-encoded.
FORM_BYTES = 16 * 1024
PROVIDER_COOKIE = "smedje_sign_in"
PROVIDER_SECONDS = 600
CALLBACK = "/login/provider/callback"
HOME = "/login"
LONGEST_NEXT = 500

router = APIRouter(include_in_schema=False)


@router.get("/login")
def show_login(request: Request, next: str = HOME) -> Response:
    """The form, or, for who is signed in, who they are and the way out."""
    secret = request.cookies.get(cookie_name(request, SESSION_COOKIE))
    if secret:
        try:
            found = sessions.authenticate(_context(request), secret)
        except AuthenticationFailed:
            pass  # An old cookie is the same as none: the form is what the person needs.
        else:
            held = people.roles_of(_context(request), found.member)
            roles = [(one.title, one.place) for one in held]
            return account_page(Account(email=found.member.email, roles=roles))
    return sign_in_page(_form(request, next=_local(next)))


@router.post("/login")
async def login(request: Request) -> Response:
    """Sign in by address and password; on to where the person was going."""
    body = _fields(await request.body())
    email, password = (body.get(name, [""])[0].replace("\0", "") for name in ("email", "password"))
    form = _form(request, next=_local(body.get("next", [HOME])[0]), email=email[:256])
    try:
        refuse_foreign_page(request)
        previous = request.cookies.get(cookie_name(request, SESSION_COOKIE))
        _, secret = await run_in_threadpool(sessions.sign_in, _context(request), email, password, previous=previous)
    except SmedjeError as problem:
        return _refused(form, problem)
    return _welcome(request, form.next, secret)


@router.post("/logout")
def logout(request: Request) -> Response:
    """End the session; back to the form."""
    refuse_foreign_page(request)
    name = cookie_name(request, SESSION_COOKIE)
    sessions.sign_out(_context(request), request.cookies.get(name, ""))
    answer = RedirectResponse(HOME, status_code=303, headers=HEADERS)
    _set_cookie(request, answer, SESSION_COOKIE, "", 0)
    return answer


@router.get("/login/provider")
def begin_with_provider(request: Request, next: str = HOME) -> Response:
    """Send the browser to the identity provider. A cookie remembers the way, until it comes back."""
    form = _form(request, next=_local(next))
    try:
        provider = services(request).provider
        if provider is None:
            raise NotFound(
                "This server has no identity provider. Set SMEDJE_OIDC_ISSUER to have one.", code="no_provider"
            )
        url, secret = provider.start(_callback(request))
    except SmedjeError as problem:
        return _refused(form, problem)
    answer = RedirectResponse(url, status_code=303, headers=HEADERS)
    place = base64.urlsafe_b64encode(form.next.encode()).decode("ascii")
    _set_cookie(request, answer, PROVIDER_COOKIE, f"{secret}.{place}", PROVIDER_SECONDS)
    return answer


@router.get(CALLBACK)
def come_back(request: Request) -> Response:
    """The browser is back from the identity provider."""
    secret, _, place = request.cookies.get(cookie_name(request, PROVIDER_COOKIE), "").partition(".")
    form = _form(request, next=_local(_decoded(place)))
    previous = request.cookies.get(cookie_name(request, SESSION_COOKIE))
    try:
        provider = services(request).provider
        if provider is None:
            raise NotFound(
                "This server has no identity provider. Set SMEDJE_OIDC_ISSUER to have one.", code="no_provider"
            )
        identity = provider.finish(_callback(request), dict(request.query_params), secret)
        # Loads the OpenID Connect packages, which most servers never need.
        from smedje.services.provider_sign_in import sign_in

        _, session = sign_in(_context(request), identity, provider.settings, previous=previous)
    except SmedjeError as problem:
        answer = _refused(form, problem)
    else:
        answer = _welcome(request, form.next, session)
    _set_cookie(request, answer, PROVIDER_COOKIE, "", 0)
    return answer


def _context(request: Request) -> Context:
    """The context, acting for an address of which nobody is known yet."""
    found: Services = services(request)
    address = request.client.host if request.client else None
    return replace(found.context, actor=Actor(address=address, request_id=request.scope.get("smedje.request_id")))


def _fields(body: bytes) -> dict[str, list[str]]:
    """The form's fields; none when it is not the form of ours."""
    try:
        return parse_qs(body.decode("utf-8", "replace"), max_num_fields=10)
    except ValueError:
        return {}


def _form(request: Request, *, next: str, email: str = "") -> SignInForm:
    provider = services(request).provider
    return SignInForm(next=next, email=email, provider=None if provider is None else provider.title)


def _refused(form: SignInForm, problem: SmedjeError) -> Response:
    answer = sign_in_page(replace(form, problem=problem.message), status=status_of(problem)[0])
    if isinstance(problem, LimitExceeded) and problem.retry_after is not None:
        answer.headers["retry-after"] = str(problem.retry_after)
    return answer


def _welcome(request: Request, next: str, secret: str) -> Response:
    answer = RedirectResponse(next, status_code=303, headers=HEADERS)
    _set_cookie(request, answer, SESSION_COOKIE, secret, sessions.LIFE_SECONDS)
    return answer


def _set_cookie(request: Request, answer: Response, name: str, value: str, seconds: int) -> None:
    """Out of scripts' reach, never sent along with a foreign page's forms, and over TLS for TLS alone."""
    answer.set_cookie(
        cookie_name(request, name),
        value,
        max_age=seconds,
        path="/",
        secure=over_tls(request),
        httponly=True,
        samesite="lax",
    )


def _callback(request: Request) -> str:
    return (services(request).public_url or str(request.base_url)).rstrip("/") + CALLBACK


def _local(next: str) -> str:
    """A path of this server; anything that a browser could take for another place becomes the start."""
    fine = next.startswith("/") and not next.startswith(("//", "/\\")) and next.isascii() and next.isprintable()
    return next if fine and "\\" not in next and len(next) <= LONGEST_NEXT else HOME


def _decoded(place: str) -> str:
    try:
        return base64.urlsafe_b64decode(place.encode("ascii")).decode("utf-8")
    except (ValueError, UnicodeError):
        return HOME
