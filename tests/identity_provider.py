"""A small OpenID Connect provider for tests, on a real socket: discovery, a page to sign in, codes, tokens, keys.

It checks what a provider must check of its client (client secret, redirect address, PKCE, codes used once), and can be
told to answer wrongly, so that the client's own checks are seen at work.
"""

import base64
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any
from urllib.parse import urlencode

import httpx2
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

from tests.api_server import serving

CLIENT_ID, CLIENT_SECRET = "smedje", "a secret of the client & more"
PAGE = """<!doctype html><html lang="en"><title>Provider</title><h1>Who are you?</h1><form method="post">
<label>Name <input name="sub"></label><button>Go on</button></form></html>"""


@dataclass
class IdentityProvider:
    """Its people by subject, its keys, and what it does wrong.

    claims: put into every ID token in the stead of what is right; None leaves one out. sign_with: signs in the stead of
    the published key. hidden: claims that only userinfo tells. about: whom userinfo
    speaks of in the stead of who asked. codes: those given out and not yet used.
    """

    url: str = ""
    people: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    sign_with: Any = None
    algorithm: str = "RS256"
    hidden: tuple[str, ...] = ()
    about: str | None = None
    redirects: set[str] = field(default_factory=set)
    key: Any = field(default_factory=lambda: new_key("first"))
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    key_requests: int = 0

    def rotate(self, kid: str) -> None:
        """Sign with a new key from now on, and publish that one alone."""
        self.key = new_key(kid)

    def elliptic(self) -> None:
        """Sign with an elliptic-curve key from now on."""
        self.key, self.algorithm = ECKey.generate_key("P-256", {"kid": "curve"}), "ES256"

    def reset(self) -> None:
        """Do everything right again."""
        self.claims, self.sign_with, self.hidden, self.algorithm, self.about = {}, None, (), "RS256", None
        self.rotate(secrets.token_hex(4))

    def id_token(self, given: Mapping[str, str]) -> str:
        """The signed token of a sign-in."""
        now = int(time.time())
        right = {
            "iss": self.url,
            "sub": given["sub"],
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": given["nonce"],
            **{name: value for name, value in self.people[given["sub"]].items() if name not in self.hidden},
        }
        told = {name: value for name, value in {**right, **self.claims}.items() if value is not None}
        key = self.sign_with or self.key
        header = {"alg": self.algorithm, "kid": key.kid or "k"}
        if self.algorithm == "none":
            parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, told))
            return ".".join(part.decode() for part in parts) + "."
        return jwt.encode(header, told, key, algorithms=[self.algorithm])


def new_key(kid: str) -> RSAKey:
    """A signing key."""
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig"})


def shared_key() -> OctKey:
    """The client's secret as a signing key, as an attacker who knows it would use it."""
    return OctKey.import_key(CLIENT_SECRET, {"kid": "first"})


def provider_app(provider: IdentityProvider) -> FastAPI:
    """The provider's endpoints."""
    app = FastAPI()

    @app.get("/.well-known/openid-configuration")
    def discovery() -> dict[str, str]:
        return {
            "issuer": provider.url,
            "authorization_endpoint": f"{provider.url}/authorize",
            "token_endpoint": f"{provider.url}/token",
            "userinfo_endpoint": f"{provider.url}/userinfo",
            "jwks_uri": f"{provider.url}/keys",
        }

    @app.get("/keys")
    def keys() -> Any:
        provider.key_requests += 1
        return KeySet([provider.key]).as_dict(private=False)

    @app.get("/authorize")
    def ask(request: Request) -> Response:
        query = request.query_params
        fine = query["client_id"] == CLIENT_ID and query["redirect_uri"] in provider.redirects
        fine = fine and query["code_challenge_method"] == "S256" and "openid" in query["scope"].split()
        return HTMLResponse(PAGE) if fine else HTMLResponse(f"refused: {escape(str(query))}", status_code=400)

    @app.post("/authorize")
    async def let_in(request: Request) -> Response:
        sub = (await request.form()).get("sub", "")
        query = dict(request.query_params)
        if sub not in provider.people:
            return _back(query, {"error": "access_denied", "error_description": "Not known <here>"})
        code = secrets.token_urlsafe(16)
        provider.codes[code] = {**query, "sub": str(sub)}
        return _back(query, {"code": code, "iss": provider.url})

    @app.post("/token")
    async def token(request: Request) -> Response:
        form = await request.form()
        given = provider.codes.pop(str(form.get("code")), None)
        if request.headers.get("authorization") != _basic():
            return JSONResponse({"error": "invalid_client"}, status_code=401)
        if (
            given is None
            or form.get("grant_type") != "authorization_code"
            or form.get("redirect_uri") != given["redirect_uri"]
            or create_s256_code_challenge(str(form.get("code_verifier"))) != given["code_challenge"]
        ):
            return JSONResponse({"error": "invalid_grant"}, status_code=400)
        access = f"access-{given['sub']}"
        body = {"access_token": access, "token_type": "Bearer", "expires_in": 300, "id_token": provider.id_token(given)}
        return JSONResponse(body)

    @app.get("/userinfo")
    def userinfo(request: Request) -> Response:
        sub = request.headers.get("authorization", "").removeprefix("Bearer access-")
        return JSONResponse({"sub": provider.about or sub, **provider.people[sub]})

    return app


@contextmanager
def running_provider() -> Iterator[IdentityProvider]:
    """A provider that answers on a free port."""
    provider = IdentityProvider()
    with serving(provider_app(provider)) as url:
        provider.url = url
        yield provider


def sign_in_there(http: httpx2.Client, server_url: str, sub: str, *, next: str = "/login") -> httpx2.Response:
    """What a browser does: from the server to the provider, its form, and back; the server's last answer."""
    away = http.get(f"{server_url}/login/provider", params={"next": next})
    assert away.status_code == 303, away.text
    there = away.headers["location"]
    assert http.get(there).status_code == 200
    back = http.post(there, data={"sub": sub}).headers["location"]
    return http.get(back)


def _back(query: Mapping[str, str], answer: Mapping[str, str]) -> Response:
    words = urlencode({**answer, "state": query["state"]})
    return RedirectResponse(f"{query['redirect_uri']}?{words}", status_code=303)


def _basic() -> str:
    return "Basic " + base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
