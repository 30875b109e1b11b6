"""Signing in through an OpenID Connect provider: the round trip, every check of it, and who becomes who."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from joserfc.jwk import RSAKey
from tests.api_server import Server, make_app, serving
from tests.identity_provider import (
    CLIENT_ID,
    CLIENT_SECRET,
    IdentityProvider,
    new_key,
    running_provider,
    shared_key,
    sign_in_there,
)
from tests.people import make_person

from smedje.errors import InvalidRequest, Unavailable
from smedje.services.oidc import GroupRole, Provider, ProviderSettings, parse_roles

ADA = {"email": "ada@example.org", "email_verified": True, "name": "Ada", "groups": ["tuners", "all"]}
ROLES = "leads=owner@default/default, tuners=ai_developer@default/default, all=reader@default, all=reader@nowhere"


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    """A provider that knows Ada."""
    with running_provider() as running:
        yield running


@pytest.fixture(scope="module")
def url(server: Server, provider: IdentityProvider) -> Iterator[str]:
    """A server over the same state that signs people in through the provider."""
    settings = ProviderSettings(
        issuer=provider.url,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        domains=("example.org", "services.internal"),
        roles=parse_roles(ROLES),
    )
    app = make_app(server.ctx)
    app.state.services = replace(app.state.services, provider=Provider(settings))
    with serving(app) as found:
        provider.redirects.add(f"{found}/login/provider/callback")
        yield found


@pytest.fixture(autouse=True)
def well_behaved(provider: IdentityProvider) -> None:
    """Each test begins with a provider that does everything right and knows Ada alone."""
    provider.reset()
    provider.people = {"ada": dict(ADA)}


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    """A browser's cookies, without a browser."""
    with httpx2.Client(timeout=30) as opened:
        yield opened


def roles(http: httpx2.Client, url: str) -> set[tuple[str, str]]:
    """The roles of who is signed in, and where."""
    return {(one["role"], one["project"] or one["hub"]) for one in http.get(f"{url}/api/me").json()["roles"]}


def test_the_first_sign_in_makes_the_member_and_maps_the_groups(
    server: Server, provider: IdentityProvider, http: httpx2.Client, url: str
) -> None:
    """From the form's link to the provider and back to where one was going; the groups' roles follow at each sign-in,
    the first line that fits for each place; the log says who came and how."""
    assert "Sign in with 127.0.0.1" in http.get(f"{url}/login").text
    assert sign_in_there(http, url, "ada", next="/api/me").headers["location"] == "/api/me"
    me = http.get(f"{url}/api/me").json()
    assert (me["email"], me["name"], me["kind"]) == ("ada@example.org", "Ada", "session")
    assert roles(http, url) == {("ai_developer", "default"), ("reader", "default")}
    provider.people["ada"]["groups"] = ["leads"]
    sign_in_there(http, url, "ada")
    assert roles(http, url) == {("owner", "default")}
    provider.people["ada"]["groups"] = []
    sign_in_there(http, url, "ada")
    assert roles(http, url) == set()
    actions = [one["action"] for one in server.get("/api/audit").json()["data"]]
    assert {"user.created", "sign_in.succeeded", "member.role_given", "member.role_taken"} <= set(actions)
    user = server.get(f"/api/users/{me['user_id']}").json()
    assert (user["provider"], user["password"]) == (provider.url, False)


def test_a_role_that_somebody_gave_outlives_the_groups(
    server: Server, provider: IdentityProvider, http: httpx2.Client, url: str
) -> None:
    """An owner's word counts more than a group's: it is neither overwritten nor taken back."""
    provider.people["bo"] = {"email": "bo@example.org", "email_verified": True, "groups": ["leads"]}
    with server.http() as owner:
        owner.put("/api/members/bo@example.org", json={"role": "reader"})
    sign_in_there(http, url, "bo")
    assert roles(http, url) == {("reader", "default")}
    provider.people["bo"]["groups"] = []
    sign_in_there(http, url, "bo")
    assert roles(http, url) == {("reader", "default")}


def test_a_known_address_is_linked_once(
    server: Server, provider: IdentityProvider, http: httpx2.Client, url: str
) -> None:
    """A local account and the provider's are one person by a verified address; another subject with that address is
    refused, and the subject stays known when its address changes."""
    person = make_person(server, "cy@example.org", role="reader")
    provider.people["cy"] = {"email": "CY@example.org", "email_verified": True}
    sign_in_there(http, url, "cy")
    assert http.get(f"{url}/api/me").json()["user_id"] == person.id
    provider.people["other"] = {"email": "cy@example.org", "email_verified": True}
    assert "another account" in sign_in_there(http, url, "other").text
    provider.people["cy"]["email"] = "cyrus@example.org"
    sign_in_there(http, url, "cy")
    assert http.get(f"{url}/api/me").json()["user_id"] == person.id


def test_claims_that_only_userinfo_tells_are_found(provider: IdentityProvider, http: httpx2.Client, url: str) -> None:
    """Address and groups may be in either; userinfo about somebody else counts for nothing."""
    provider.hidden = ("email", "email_verified", "groups")
    assert sign_in_there(http, url, "ada").status_code == 303
    assert ("ai_developer", "default") in roles(http, url)
    provider.about = "somebody else"
    sign_in_there(http, url, "ada")
    assert roles(http, url) == set()


def test_keys_are_looked_up_anew_when_the_provider_signs_with_others(
    provider: IdentityProvider, http: httpx2.Client, url: str
) -> None:
    """Rotation, also to another kind of key, goes unnoticed; with known keys nothing is asked."""
    sign_in_there(http, url, "ada")
    asked = provider.key_requests
    assert sign_in_there(http, url, "ada").status_code == 303
    assert provider.key_requests == asked
    provider.rotate("second")
    assert sign_in_there(http, url, "ada").status_code == 303
    provider.elliptic()
    assert sign_in_there(http, url, "ada").status_code == 303
    assert provider.key_requests == asked + 2


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"aud": "another"},
        {"aud": None},
        {"aud": [CLIENT_ID, "another"]},
        {"azp": "another"},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"exp": 1_000_000_000},
        {"exp": None},
        {"iat": 4_000_000_000},
        {"nbf": 4_000_000_000},
        {"sub": None},
        {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"},
    ],
    ids=str,
)
def test_an_id_token_for_somebody_or_sometime_else_is_refused(
    provider: IdentityProvider, http: httpx2.Client, url: str, claims: dict[str, Any]
) -> None:
    """Nonce, audience, issuer, expiry, times, subject and the access token's hash all have to be right."""
    provider.claims = claims
    answer = sign_in_there(http, url, "ada")
    assert answer.status_code == 401, answer.headers
    assert "ID token is not good" in answer.text
    assert "smedje_session" not in http.cookies


@pytest.mark.parametrize(("key", "algorithm"), [(new_key("first"), "RS256"), (shared_key(), "HS256"), (None, "none")])
def test_an_id_token_that_the_provider_did_not_sign_is_refused(
    provider: IdentityProvider, http: httpx2.Client, url: str, key: RSAKey | None, algorithm: str
) -> None:
    """Another key under the same name, our own secret as a key, and no signature at all."""
    provider.sign_with, provider.algorithm = key, algorithm
    assert sign_in_there(http, url, "ada").status_code == 401
    assert "smedje_session" not in http.cookies


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"email": None}, "does not vouch"),
        ({"email_verified": False}, "does not vouch"),
        ({"email_verified": None}, "does not vouch"),
        ({"email": "eve@evil.example"}, "domain"),
        ({"email": "ci@services.internal"}, "service identity"),
        ({"email": "<b>@example.org"}, "cannot be used"),
    ],
)
def test_an_address_that_proves_nothing_lets_nobody_in(
    server: Server, provider: IdentityProvider, http: httpx2.Client, url: str, claims: dict[str, Any], words: str
) -> None:
    """None, an unverified one, a foreign domain's, a service identity's, and one that is none; nothing stays behind."""
    before = server.get("/api/users").json()["data"]
    provider.people = {"new": {key: value for key, value in {**ADA, **claims}.items() if value is not None}}
    answer = sign_in_there(http, url, "new")
    assert answer.status_code == 401
    assert words in answer.text
    assert server.get("/api/users").json()["data"] == before
    assert server.get("/api/audit").json()["data"][0]["action"] == "sign_in.failed"


def test_a_disabled_member_cannot_come_in_by_the_provider(
    server: Server, provider: IdentityProvider, http: httpx2.Client, url: str
) -> None:
    """Disabling holds for every way in."""
    provider.people["off"] = {"email": "off@example.org", "email_verified": True}
    sign_in_there(http, url, "off")
    with server.http() as owner:
        owner.patch("/api/users/off@example.org", json={"disabled": True})
    assert "disabled" in sign_in_there(http, url, "off").text


def test_only_the_browser_that_began_may_end_a_sign_in(
    provider: IdentityProvider, http: httpx2.Client, url: str
) -> None:
    """Without its cookie, with another browser's, with a changed state, a second time, or with another issuer's name:
    refused, and no session."""
    there = http.get(f"{url}/login/provider").headers["location"]
    back = http.post(there, data={"sub": "ada"}).headers["location"]
    with httpx2.Client() as stranger:
        assert "not begun in this browser" in stranger.get(back).text
        stranger.get(f"{url}/login/provider")
        assert "not begun in this browser" in stranger.get(back).text
        assert "smedje_session" not in stranger.cookies
    secret = http.cookies["smedje_sign_in"]
    for wrong in (back.replace("state=", "state=x"), back.partition("&")[0], f"{back}&iss=https://evil.example"):
        http.cookies.set("smedje_sign_in", secret, domain="127.0.0.1", path="/")
        assert http.get(wrong).status_code == 401, wrong
    http.cookies.set("smedje_sign_in", secret, domain="127.0.0.1", path="/")
    assert http.get(back).status_code == 303
    http.cookies.set("smedje_sign_in", secret, domain="127.0.0.1", path="/")
    again = http.get(back)
    assert again.status_code == 401
    assert "invalid_grant" in again.text


def test_the_way_back_leads_to_the_public_address(server: Server, provider: IdentityProvider) -> None:
    """Behind a proxy the provider is told where browsers reach the server, not where the proxy does."""
    settings = ProviderSettings(issuer=provider.url, client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    app = make_app(server.ctx)
    public = "https://smedje.example.org/"
    app.state.services = replace(app.state.services, provider=Provider(settings), public_url=public)
    with serving(app) as url:
        away = httpx2.get(f"{url}/login/provider")
    query = parse_qs(urlsplit(away.headers["location"]).query)
    assert query["redirect_uri"] == ["https://smedje.example.org/login/provider/callback"]
    assert query["code_challenge_method"] == ["S256"]
    assert "Secure" in away.headers["set-cookie"]
    assert len({query["state"][0], query["nonce"][0], query["code_challenge"][0]}) == 3


def test_what_the_provider_says_no_with_is_shown_as_text(http: httpx2.Client, url: str) -> None:
    """Its reason stands on the page, escaped, beside the form to try again."""
    answer = sign_in_there(http, url, "nobody")
    assert answer.status_code == 401
    assert "Not known &lt;here&gt;" in answer.text
    assert '<label for="password">' in answer.text


def test_a_provider_that_is_not_there_or_not_itself_is_said_so(server: Server, provider: IdentityProvider) -> None:
    """Nobody at the address, and somebody who goes by another name."""
    for issuer in ("http://127.0.0.1:1", f"{provider.url}/"):
        settings = ProviderSettings(issuer=issuer, client_id="c", client_secret="s")
        with pytest.raises(Unavailable):
            Provider(settings).start("http://127.0.0.1/")


def test_settings_that_cannot_work_stop_the_start() -> None:
    """Plain HTTP to elsewhere, no client, and a role without a place are refused with the setting's name."""
    for issuer, client in (("http://id.example.org", "c"), ("https://id.example.org", ""), ("id.example.org", "c")):
        with pytest.raises(InvalidRequest, match="SMEDJE_OIDC_ISSUER"):
            Provider(ProviderSettings(issuer=issuer, client_id=client, client_secret=""))
    assert parse_roles("a b=owner@h/p, c=reader@h") == (
        GroupRole(group="a b", role="owner", hub="h", project="p"),
        GroupRole(group="c", role="reader", hub="h", project=None),
    )
    for text in ("owner@h", "g=owner", "g=owner@", "g=owner@h/", "=owner@h"):
        with pytest.raises(InvalidRequest, match="SMEDJE_OIDC_ROLES"):
            parse_roles(text)
