"""An OpenID Connect provider as its client: authorization code with PKCE, state and nonce; discovery; keys; ID tokens.

Knows the protocol (OpenID Connect Core 1.0, RFC 7636, RFC 9700); knows nothing of members or cookies. What a sign-in
under way has to remember is derived from one secret that the browser keeps, so the server keeps nothing.
"""

import base64
import hashlib
import hmac
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from smedje.errors import AuthenticationFailed, InvalidRequest, Unavailable

SCOPE = "openid email profile"
# Never "none", and no algorithm for which the key is a secret that we share.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
LEEWAY_SECONDS = 60
TIMEOUT_SECONDS = 10
DISCOVERY = "/.well-known/openid-configuration"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class GroupRole:
    """Members of a provider's group have a role in a hub, or (project given) in one of its projects."""

    group: str
    role: str
    hub: str
    project: str | None


@dataclass(frozen=True, kw_only=True)
class ProviderSettings:
    """How to ask a provider and whom to let in. domains: of addresses; empty for any. roles: those of its groups."""

    issuer: str
    client_id: str
    client_secret: str
    domains: tuple[str, ...] = ()
    roles: tuple[GroupRole, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whom the provider has signed in. email: only when the provider says that it is theirs."""

    issuer: str
    subject: str
    email: str | None
    name: str
    groups: tuple[str, ...] = ()


class Provider:
    """One provider; owns what is remembered of it: its addresses, and its keys until it signs with others."""

    def __init__(self, settings: ProviderSettings) -> None:
        _check_issuer(settings)
        self.settings = settings
        self._lock = threading.Lock()
        self._metadata: Mapping[str, Any] | None = None
        self._keys: KeySet | None = None

    @property
    def title(self) -> str:
        """The provider's name for people: its host."""
        return urlsplit(self.settings.issuer).hostname or self.settings.issuer

    def start(self, redirect_uri: str) -> tuple[str, str]:
        """Where to send the browser, and the secret that it has to bring back. Raises Unavailable."""
        secret = secrets.token_urlsafe(32)
        with self._client(redirect_uri) as client, _failures(self.title):
            url, _ = client.create_authorization_url(
                self._discovered()["authorization_endpoint"],
                state=_derived(secret, "state"),
                nonce=_derived(secret, "nonce"),
                code_verifier=_derived(secret, "verifier"),
            )
        return str(url), secret

    def finish(self, redirect_uri: str, answer: Mapping[str, str], secret: str) -> Identity:
        """Who has signed in, from the query that the browser came back with.

        Raises AuthenticationFailed when anything about it is not as it must be, Unavailable without the provider.
        """
        if not hmac.compare_digest(answer.get("state", "").encode(), _derived(secret, "state").encode()):
            raise refused("This sign-in was not begun in this browser, or too long ago")
        if "error" in answer or not answer.get("code"):
            raise refused(
                "The provider says: " + _printable(answer.get("error_description") or answer.get("error", ""))
            )
        # RFC 9207: an answer that names another issuer was meant for somebody else.
        if answer.get("iss", self.settings.issuer) != self.settings.issuer:
            raise refused("The answer comes from another provider")
        with self._client(redirect_uri) as client, _failures(self.title):
            token = client.fetch_token(
                self._discovered()["token_endpoint"],
                grant_type="authorization_code",
                code=answer["code"],
                code_verifier=_derived(secret, "verifier"),
                redirect_uri=redirect_uri,
            )
            claims = self._claims(token, nonce=_derived(secret, "nonce"))
            claims = {**self._userinfo(client, claims), **claims}
        return _identity(self.settings.issuer, claims)

    def _client(self, redirect_uri: str) -> OAuth2Client:
        return OAuth2Client(
            client_id=self.settings.client_id,
            client_secret=self.settings.client_secret or None,
            redirect_uri=redirect_uri,
            scope=SCOPE,
            code_challenge_method="S256",
            timeout=TIMEOUT_SECONDS,
            follow_redirects=False,
            trust_env=not _is_loopback(self.settings.issuer),
        )

    def _discovered(self) -> Mapping[str, Any]:
        with self._lock:
            if self._metadata is None:
                found = self._get(self.settings.issuer.rstrip("/") + DISCOVERY)
                if found.get("issuer") != self.settings.issuer:
                    raise Unavailable(
                        f"The identity provider calls itself {_printable(str(found.get('issuer')))}, not "
                        f"{self.settings.issuer}. Correct SMEDJE_OIDC_ISSUER.",
                        code="provider_unavailable",
                    )
                self._metadata = found
            return self._metadata

    def _claims(self, token: Mapping[str, Any], *, nonce: str) -> dict[str, Any]:
        """What the ID token says, its signature and every claim about its use checked."""
        text = token.get("id_token")
        if not isinstance(text, str):
            raise refused("The provider's answer holds no ID token")
        try:
            decoded = self._decoded(text)
            claims = CodeIDToken(
                decoded.claims,
                decoded.header,
                options={
                    "iss": {"essential": True, "value": self.settings.issuer},
                    "aud": {"essential": True, "value": self.settings.client_id},
                },
                params={
                    "nonce": nonce,
                    "client_id": self.settings.client_id,
                    "access_token": token.get("access_token"),
                },
            )
            claims.validate(leeway=LEEWAY_SECONDS)
        except (JoseError, ValueError, TypeError) as problem:
            raise refused(f"The provider's ID token is not good ({type(problem).__name__})") from problem
        return dict(claims)

    def _decoded(self, text: str) -> jwt.Token:
        """The token under the keys that are known, or, when none of them signed it, under those of this moment."""
        known = self._keys
        if known is not None:
            try:
                return jwt.decode(text, known, algorithms=ALGORITHMS)
            except (JoseError, ValueError):
                pass  # Signed with a newer key, perhaps; the second look below decides.
        fresh: Any = self._get(str(self._discovered()["jwks_uri"]))
        self._keys = KeySet.import_key_set(fresh)
        return jwt.decode(text, self._keys, algorithms=ALGORITHMS)

    def _userinfo(self, client: OAuth2Client, claims: Mapping[str, Any]) -> dict[str, Any]:
        """What the provider's userinfo adds, when the token alone has no address or groups."""
        address = self._discovered().get("userinfo_endpoint")
        if not address or ("email" in claims and "groups" in claims):
            return {}
        answer = client.get(address)
        found = answer.json() if answer.status_code == 200 else {}
        # It must speak of the same person, or it was put there by somebody else (OpenID Connect Core 5.3.2).
        return found if isinstance(found, dict) and found.get("sub") == claims["sub"] else {}

    def _get(self, url: str) -> dict[str, Any]:
        with _failures(self.title):
            client = httpx2.Client(timeout=TIMEOUT_SECONDS, trust_env=not _is_loopback(self.settings.issuer))
            with client:
                answer = client.get(url)
                answer.raise_for_status()
                found = answer.json()
        if not isinstance(found, dict):
            raise Unavailable(f"{self.title} did not answer with a JSON object.", code="provider_unavailable")
        return found


@contextmanager
def _failures(title: str) -> Iterator[None]:
    """Turns whatever the provider or the way to it does wrong into errors of ours."""
    try:
        yield
    except AuthlibBaseError as problem:
        raise refused(f"The provider refused the sign-in ({_printable(problem.error or '')})") from problem
    except (httpx2.HTTPError, ValueError, KeyError, JoseError) as problem:
        raise Unavailable(
            f"The identity provider {title} cannot be used now ({type(problem).__name__}).",
            code="provider_unavailable",
        ) from problem


def refused(reason: str) -> AuthenticationFailed:
    """The error of a sign-in through the provider that must not succeed."""
    return AuthenticationFailed(f"{reason}. Begin again at /login.", code="provider_sign_in_failed")


def parse_roles(text: str) -> tuple[GroupRole, ...]:
    """`group=role@hub/project, group=role@hub`: roles for a provider's groups. Raises InvalidRequest."""
    found = []
    for part in filter(None, (one.strip() for one in text.split(","))):
        group, equals, rest = part.rpartition("=")
        role, at, place = rest.partition("@")
        hub, slash, project = place.partition("/")
        if not (group and equals and role and at and hub) or (slash and not project):
            raise InvalidRequest(
                f"SMEDJE_OIDC_ROLES holds {part[:100]!r}; write group=role@hub or group=role@hub/project.",
                code="invalid_setting",
                param="SMEDJE_OIDC_ROLES",
            )
        found.append(
            GroupRole(group=group.strip(), role=role.strip(), hub=hub.strip(), project=project.strip() or None)
        )
    return tuple(found)


def _identity(issuer: str, claims: Mapping[str, Any]) -> Identity:
    email, groups = claims.get("email"), claims.get("groups")
    verified = claims.get("email_verified") in (True, "true")
    listed: Sequence[Any] = groups if isinstance(groups, list) else []
    return Identity(
        issuer=issuer,
        subject=str(claims["sub"]),
        email=email.lower() if isinstance(email, str) and verified else None,
        name=_printable(str(claims.get("name") or "")),
        groups=tuple(one for one in listed if isinstance(one, str)),
    )


def _derived(secret: str, purpose: str) -> str:
    digest = hashlib.sha256(f"smedje {purpose} {secret}".encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:200]


def _check_issuer(settings: ProviderSettings) -> None:
    parts = urlsplit(settings.issuer)
    if not settings.client_id or not parts.hostname or not (parts.scheme == "https" or _is_loopback(settings.issuer)):
        raise InvalidRequest(
            f"SMEDJE_OIDC_ISSUER is {settings.issuer!r}. It must begin with https:// (http:// on this machine alone), "
            "and SMEDJE_OIDC_CLIENT_ID must be set with it.",
            code="invalid_setting",
            param="SMEDJE_OIDC_ISSUER",
        )


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in LOOPBACK
