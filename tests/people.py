"""People for tests: accounts with passwords, and a browser's cookies without a browser."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2

from smedje.services import passwords, sessions
from smedje.services.members import new_member
from smedje.services.sessions import SignedIn
from smedje.store import members as rows
from tests.api_server import Server

PASSWORD = "correct horse battery staple"
# What a browser says of a request that a page of the same server caused.
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


@dataclass(frozen=True)
class Person:
    """Somebody with an account on a server."""

    id: str
    email: str


def make_person(server: Server, email: str, *, role: str | None = None, scope: str = "project") -> Person:
    """An account with PASSWORD and, where asked for, a role in the default project or its hub."""
    made = server.post("/api/users", {"email": email, "password": PASSWORD})
    assert made.status_code == 200, made.text
    if role is not None:
        with server.http() as http:
            given = http.put(f"/api/members/{email}", json={"role": role, "scope": scope})
        assert given.status_code == 200, given.text
    return Person(made.json()["id"], email)


def log_in(http: httpx2.Client, email: str, password: str = PASSWORD, *, next: str = "/login") -> httpx2.Response:
    """Send the form as a browser would. The client keeps the cookie."""
    form = {"email": email, "password": password, "next": next}
    return http.post("/login", data=form, headers=SAME_ORIGIN)


@contextmanager
def browser(server: Server, email: str, password: str = PASSWORD) -> Iterator[httpx2.Client]:
    """A client that is signed in, and says of every request that it comes from the server's own pages."""
    with httpx2.Client(base_url=server.url, headers=SAME_ORIGIN, timeout=60) as http:
        answer = log_in(http, email, password)
        assert answer.status_code == 303, answer.text
        yield http


def session_secret(server: Server, email: str) -> str:
    """The cookie's value of a fresh session, without the form; the account is made if there is none."""
    ctx = server.ctx
    with ctx.database.transaction() as tx:
        member = rows.find_member(tx, email)
        if member is None:
            member = new_member(email, None, ctx.seconds())
            rows.insert_member(tx, member)
            rows.set_password(tx, member.id, passwords.hashed(PASSWORD, address=email))
        return sessions.begin(ctx, tx, member, how="password", previous=None)[1]


def whose(server: Server, secret: str) -> SignedIn:
    """Who a session's secret belongs to."""
    return sessions.authenticate(server.ctx, secret)
