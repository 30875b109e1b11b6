"""Signing in with a browser: the form, the cookie, failures, foreign pages, and what a session may do."""

import re
import time
from dataclasses import replace

import httpx2
import pytest
from tests.api_server import Server, chat_lines, make_app, serving
from tests.people import PASSWORD, SAME_ORIGIN, browser, log_in, make_person, session_secret

from smedje.api.pages import HEADERS
from smedje.errors import AuthenticationFailed
from smedje.services import passwords, sessions
from smedje.store import members as rows


def cookie_of(answer: httpx2.Response) -> str:
    """The Set-Cookie line of the session."""
    [line] = [line for line in answer.headers.get_list("set-cookie") if "smedje_session" in line]
    return str(line)


def events(server: Server) -> list[str]:
    """The newest actions of the audit log, newest first."""
    return [one["action"] for one in server.get("/api/audit").json()["data"]]


def test_somebody_signs_in_looks_around_and_out_again(server: Server) -> None:
    """The form leads to where one was going; the session reads and writes as its roles allow; after signing out the
    cookie is worth nothing, and each step is in the log."""
    person = make_person(server, "ada@example.org", role="ai_developer")
    with httpx2.Client(base_url=server.url, headers=SAME_ORIGIN) as http:
        assert log_in(http, person.email, next="/api/me").headers["location"] == "/api/me"
        me = http.get("/api/me").json()
        assert (me["kind"], me["email"], me["user_id"]) == ("session", person.email, person.id)
        assert me["project"]["id"] == server.project.id
        assert [(role["role"], role["project"]) for role in me["roles"]] == [("ai_developer", "default")]
        assert "jobs.write" in me["permissions"]
        form = {"file": ("a.jsonl", chat_lines(12))}
        assert http.post("/v1/files", files=form, data={"purpose": "fine-tune"}).status_code == 200
        assert http.post("/api/hubs", json={"name": "mine"}).json()["error"]["code"] == "permission_denied"
        assert "Azure AI Developer" in http.get("/login").text
        cookies = dict(http.cookies)
        assert http.post("/logout").headers["location"] == "/login"
        assert not dict(http.cookies)
    stale = httpx2.get(server.url + "/api/me", cookies=cookies)
    assert (stale.status_code, stale.json()["error"]["code"]) == (401, "session_over")
    assert events(server)[:3] == ["signed_out", "file.created", "sign_in.succeeded"]


def test_the_cookie_is_out_of_reach_of_scripts_and_foreign_pages(server: Server) -> None:
    """HttpOnly and SameSite=Lax always; Secure and the __Host- prefix over TLS; only a digest is kept."""
    make_person(server, "bo@example.org")
    with httpx2.Client(base_url=server.url) as http:
        plain = cookie_of(log_in(http, "bo@example.org"))
        secret = http.cookies["smedje_session"]
    for word in ("HttpOnly", "SameSite=lax", "Path=/", "Max-Age=43200"):
        assert word in plain
    assert "Secure" not in plain
    with httpx2.Client(base_url=server.url, headers={"x-forwarded-proto": "https"}) as http:
        over_tls = cookie_of(log_in(http, "bo@example.org"))
    assert over_tls.startswith("__Host-smedje_session=")
    assert "Secure" in over_tls
    app = make_app(server.ctx)
    app.state.services = replace(app.state.services, public_url="https://smedje.example.org")
    with serving(app) as url, httpx2.Client(base_url=url) as http:
        form = {"email": "bo@example.org", "password": PASSWORD}
        answer = http.post("/login", data=form, headers={"origin": "https://smedje.example.org"})
    assert "Secure" in cookie_of(answer)
    raw = b"".join(path.read_bytes() for path in server.ctx.home.glob("smedje.db*"))
    assert len(secret) == 43
    assert secret.encode() not in raw
    assert PASSWORD.encode() not in raw


def test_signing_in_again_ends_the_session_before(server: Server) -> None:
    """Each sign-in has a secret of its own, and the browser's session so far ends with it."""
    make_person(server, "cy@example.org")
    with browser(server, "cy@example.org") as http:
        first = http.cookies["smedje_session"]
        log_in(http, "cy@example.org")
        assert http.cookies["smedje_session"] != first
        assert http.get("/api/me").status_code == 200
    with pytest.raises(AuthenticationFailed, match="over"):
        sessions.authenticate(server.ctx, first)


def test_a_session_ends_by_age_and_by_idleness(server: Server) -> None:
    """Two hours without a request, or twelve in all, and the next request is a 401."""
    secret = session_secret(server, "age@example.org")

    def at(seconds: int) -> None:
        sessions.authenticate(replace(server.ctx, now=lambda: time.time() + seconds), secret)

    for hours in range(1, 12):
        at(hours * 3600)
    with pytest.raises(AuthenticationFailed):
        at(12 * 3600 + 1)
    idle = session_secret(server, "age@example.org")
    with pytest.raises(AuthenticationFailed):
        sessions.authenticate(replace(server.ctx, now=lambda: time.time() + 2 * 3600 + 1), idle)


@pytest.mark.parametrize(
    ("headers", "fine"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "OWN"}, False),
        ({"origin": "OWN"}, True),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
        ({}, False),
    ],
)
def test_only_pages_of_this_server_change_anything_by_cookie(
    server: Server, headers: dict[str, str], fine: bool
) -> None:
    """By what the browser says of where a request comes from: ours pass, all others are a 403 that changes nothing."""
    cookies = {"smedje_session": session_secret(server, "eve@example.org")}
    sent = {name: server.url if value == "OWN" else value for name, value in headers.items()}
    with httpx2.Client(base_url=server.url, cookies=cookies, headers=sent) as http:
        changed = http.patch("/api/me", json={"project": "nowhere"})
        assert changed.json()["error"]["code"] == ("mismatched_project" if fine else "cross_site_request")
        assert http.get("/api/me").status_code == 200
        form = {"email": "eve@example.org", "password": PASSWORD}
        assert http.post("/login", data=form).status_code == (303 if fine else 403)
        assert http.post("/logout").status_code == (303 if fine else 403)


def test_an_unknown_address_fails_like_a_wrong_password_and_as_slowly(server: Server) -> None:
    """Same words, same status; the hash is computed either way, so the time tells nothing."""
    make_person(server, "known@example.org")
    seconds: dict[str, list[float]] = {"known@example.org": [], "unknown@example.org": []}
    pages = {}
    for _ in range(4):
        for email, found in seconds.items():
            begun = time.perf_counter()
            with pytest.raises(AuthenticationFailed) as problem:
                sessions.check_password(server.ctx, email, "a wrong password")
            found.append(time.perf_counter() - begun)
            pages[email] = str(problem.value)
    assert len(set(pages.values())) == 1
    known, unknown = (min(found) for found in seconds.values())
    assert 0.5 < known / unknown < 2
    assert unknown > 0.005


def test_too_many_failures_are_slowed_down_for_everyone_alike(server: Server) -> None:
    """Five failures of one address from one place are borne, then each attempt is a 429 until the window has passed,
    with the right password too, whether the account exists or not."""
    make_person(server, "guess@example.org")
    for email in ("guess@example.org", "nobody-at-all@example.org"):
        with httpx2.Client(base_url=server.url) as http:
            statuses = [log_in(http, email, "wrong wrong wrong").status_code for _ in range(7)]
            blocked = log_in(http, email)
        assert statuses == [401] * 5 + [429] * 2
        assert blocked.status_code == 429
        assert 0 < int(blocked.headers["retry-after"]) <= 900
        assert "Too many attempts" in blocked.text
    later = replace(server.ctx, now=lambda: time.time() + sessions.WINDOW_SECONDS + 1)
    assert sessions.check_password(later, "guess@example.org", PASSWORD).email == "guess@example.org"


def test_the_page_can_be_used_without_scripts_and_eyes(server: Server) -> None:
    """Every field has its label, a problem is announced and tied to its fields, the title says it first; nothing runs
    or is fetched, and what was typed comes back as text."""
    page = httpx2.get(server.url + "/login?next=//evil.example")
    assert page.headers["content-security-policy"] == HEADERS["content-security-policy"]
    assert "<script" not in page.text
    assert 'lang="en"' in page.text
    fields = set(re.findall(r'<input id="(\w+)"', page.text))
    assert fields == set(re.findall(r'<label for="(\w+)"', page.text)) == {"email", "password"}
    assert 'autocomplete="username"' in page.text
    assert 'autocomplete="current-password"' in page.text
    assert 'name="next" value="/login"' in page.text
    with httpx2.Client(base_url=server.url) as http:
        failed = log_in(http, '"><b>x@example.org', "wrong")
    assert failed.status_code == 401
    assert "<title>Error: Sign in" in failed.text
    assert re.search(r'role="alert" id="problem">The e-mail address or the password is wrong\.', failed.text)
    assert failed.text.count('aria-describedby="problem" aria-invalid="true"') == 2
    assert "<b>x" not in failed.text
    assert "wrong" not in re.findall(r'<input id="password".*?>', failed.text, re.DOTALL)[0]


@pytest.mark.parametrize("next", ["//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil", "/a\nb", ""])
def test_signing_in_leads_to_this_server_alone(server: Server, next: str) -> None:
    """A place elsewhere becomes the start page."""
    session_secret(server, "go@example.org")
    with httpx2.Client(base_url=server.url) as http:
        assert log_in(http, "go@example.org", next=next).headers["location"] == "/login"


def test_somebody_without_a_role_is_known_and_may_do_nothing(server: Server) -> None:
    """/api/me answers; everything else is a 403 that says whom to ask."""
    make_person(server, "new@example.org")
    with browser(server, "new@example.org") as http:
        me = http.get("/api/me").json()
        assert (me["email"], me["project"], me["roles"], me["permissions"]) == ("new@example.org", None, [], [])
        refused = http.get("/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "no_role")
        assert "no role in any project yet" in http.get("/login").text


def test_a_session_acts_where_its_member_has_a_role(server: Server) -> None:
    """By header for one request, by PATCH for the rest of the session; a project without a role is a 403."""
    project = server.post("/api/projects", {"name": "second"}).json()["id"]
    server.post("/api/projects", {"name": "hidden"})
    make_person(server, "two@example.org", role="reader")
    with server.http() as owner:
        given = owner.put("/api/members/two@example.org", json={"role": "owner"}, headers={"openai-project": project})
        assert given.status_code == 200
    with browser(server, "two@example.org") as http:
        assert http.get("/api/me").json()["project"]["name"] == "default"
        assert http.post("/api/keys", json={"name": "k", "role": "reader"}).status_code == 403
        there = http.post("/api/keys", json={"name": "k", "role": "reader"}, headers={"openai-project": "second"})
        assert there.status_code == 200
        assert http.patch("/api/me", json={"project": project}).json()["project"]["name"] == "second"
        assert http.get("/api/me").json()["permissions"] != []
        assert http.post("/api/keys", json={"name": "k", "role": "owner"}).status_code == 200
        for name in ("hidden", "never"):
            assert http.get("/v1/models", headers={"openai-project": name}).status_code == 403


def test_a_password_is_changed_by_its_owner_and_set_anew_by_the_operator(server: Server) -> None:
    """Who knows the old one sets a new one and the other sessions end; the operator's reset ends them all."""
    make_person(server, "key@example.org", role="reader")
    with browser(server, "key@example.org") as other, browser(server, "key@example.org") as http:
        body = {"current": "wrong", "new": "another long password"}
        assert http.put("/api/me/password", json=body).json()["error"]["code"] == "wrong_password"
        weak = http.put("/api/me/password", json={"current": PASSWORD, "new": "short"})
        assert weak.json()["error"]["code"] == "weak_password"
        assert http.put("/api/me/password", json={**body, "current": PASSWORD}).json()["changed"] is True
        assert http.get("/api/me").status_code == 200
        assert other.get("/api/me").status_code == 401
        with server.http() as owner:
            assert owner.patch("/api/users/key@example.org", json={"password": PASSWORD}).status_code == 200
        assert http.get("/api/me").status_code == 401
    assert server.post("/api/users", {"email": "ci@services.internal", "password": PASSWORD}).status_code == 400
    with server.http() as owner:
        refused = owner.put("/api/me/password", json=body)
    assert refused.json()["error"]["code"] == "not_a_session"


def test_a_disabled_account_can_do_nothing_until_it_is_enabled(server: Server) -> None:
    """Its sessions end, its keys answer 401, signing in fails in the usual words; enabling brings back the keys."""
    make_person(server, "off@example.org", role="reader")
    key = server.post("/api/keys", {"name": "of off", "member": "off@example.org"}).json()["secret"]
    with browser(server, "off@example.org") as http, server.http() as owner:
        assert owner.patch("/api/users/off@example.org", json={"disabled": True}).json()["disabled_at"] is not None
        assert http.get("/api/me").json()["error"]["code"] == "session_over"
        assert server.get("/v1/models", key=key).json()["error"]["code"] == "user_disabled"
        assert "is wrong" in log_in(http, "off@example.org").text
        assert owner.patch("/api/users/off@example.org", json={"disabled": False}).json()["disabled_at"] is None
        assert server.get("/v1/models", key=key).status_code == 200
        assert http.get("/api/me").status_code == 401


def test_accounts_are_for_the_whole_server_alone(server: Server) -> None:
    """A project's owner neither sees accounts nor sets a password; a known address is not made twice."""
    make_person(server, "once@example.org")
    key = server.post("/api/keys", {"name": "project owner", "role": "owner"}).json()["secret"]
    assert server.get("/api/users", key=key).status_code == 403
    assert server.post("/api/users", {"email": "x@example.org"}, key=key).status_code == 403
    with server.http(key) as http:
        assert http.patch("/api/users/once@example.org", json={"password": PASSWORD}).status_code == 403
    again = server.post("/api/users", {"email": "ONCE@example.org"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "user_exists")
    found = server.get("/api/users?limit=1").json()
    assert found["has_more"] is True
    assert server.get("/api/users/" + found["data"][0]["email"]).json() == found["data"][0]


def test_a_service_identity_has_keys_and_no_way_to_sign_in(server: Server) -> None:
    """Its address is made by giving it a role; its key acts with that role; the form does not know it."""
    with server.http() as owner:
        given = owner.put("/api/members/ci@services.internal", json={"role": "deployment_operator"}).json()
    assert (given["kind"], given["role"]) == ("service", "deployment_operator")
    key = server.post("/api/keys", {"name": "of ci", "member": "ci@services.internal"}).json()["secret"]
    me = server.get("/api/me", key=key).json()
    assert (me["kind"], me["email"], me["roles"][0]["role"]) == (
        "api_key",
        "ci@services.internal",
        "deployment_operator",
    )
    assert server.get("/api/deployments", key=key).status_code == 200
    assert server.get("/v1/files", key=key).status_code == 403
    with httpx2.Client(base_url=server.url) as http:
        assert log_in(http, "ci@services.internal").status_code == 401


def test_hashes_have_owasps_parameters_and_are_renewed(server: Server) -> None:
    """argon2id with 19 MiB, 2 passes and 1 lane; a hash of other parameters is replaced at the next sign-in."""
    from argon2 import PasswordHasher

    make_person(server, "old@example.org")
    with server.ctx.database.transaction() as tx:
        member = rows.find_member(tx, "old@example.org")
        assert member is not None
        kept = rows.password_of(tx, member.id)
        assert kept is not None
        assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        rows.set_password(tx, member.id, PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD))
    sessions.check_password(server.ctx, "old@example.org", PASSWORD)
    with server.ctx.database.transaction() as tx:
        renewed = rows.password_of(tx, member.id)
    assert renewed is not None
    assert not passwords.outdated(renewed)


def test_without_a_provider_there_is_none_to_sign_in_with(server: Server) -> None:
    """The form offers no other way, and the way itself says why."""
    with serving(make_app(server.ctx)) as url:
        assert "/login/provider" not in httpx2.get(url + "/login").text
        answer = httpx2.get(url + "/login/provider")
        assert answer.status_code == 404
        assert "no identity provider" in answer.text
