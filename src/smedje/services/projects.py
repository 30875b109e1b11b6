"""Hubs, projects and API keys: the first-run defaults, who a secret belongs to, and making and revoking keys.

Knows that a key is kept only as its SHA-256: a key carries 256 random bits, so a slow hash would add nothing.
"""

import hashlib
import os
import re
import secrets
import string
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Connection

from smedje.domain.ids import HUB, KEY, PROJECT, new_id
from smedje.domain.projects import ApiKey, Grant, Hub, Principal, Project, Role, Scope
from smedje.domain.roles import AnyRole
from smedje.errors import AuthenticationFailed, Conflict, InvalidRequest, NotFound, PermissionDenied
from smedje.services.context import Context
from smedje.store import members as member_rows
from smedje.store import projects as store

DEFAULT = "default"
OWNER_KEY_FILE = "owner_key"
# A key's last use is written down at most this often, so that reading does not become writing.
USE_SECONDS = 60
STARTS = 3
SHORTEST_SECRET = 16
LONGEST_SECRET = 512
GENERATED = re.compile(r"smedje_([A-Za-z0-9_-]{43})_([0-9A-Za-z]{6})\Z")
DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase


@dataclass(frozen=True, kw_only=True)
class BootstrapResult:
    """What start-up found or made. new_secret: the owner key, only when this call generated it."""

    project: Project
    new_secret: str | None = None
    key_file: Path | None = None


def ensure_defaults(ctx: Context, bootstrap_key: str | None, location: str) -> BootstrapResult:
    """The default hub and project, made on the first run, and an owner key that opens the project.

    With a `bootstrap_key` that key is made known; without one a first run generates a key and keeps it in
    `<home>/owner_key`, readable by this user alone. Raises InvalidRequest for a bootstrap key that is too short,
    malformed or revoked.
    """
    if bootstrap_key is not None:
        _check_bootstrap_key(bootstrap_key)
    for _ in range(STARTS):
        try:
            return _ensure(ctx, bootstrap_key, location)
        except Conflict:
            # Another server starts on the same database at this moment; its defaults are there now.
            continue
    return _ensure(ctx, bootstrap_key, location)


def _ensure(ctx: Context, bootstrap_key: str | None, location: str) -> BootstrapResult:
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        project = store.find_project(tx, DEFAULT, DEFAULT)
        if project is None:
            hub = Hub(id=new_id(HUB), name=DEFAULT, display_name="Default hub", location=location, created_at=now)
            project = Project(
                id=new_id(PROJECT), hub_id=hub.id, name=DEFAULT, description="Made on the first run.", created_at=now
            )
            store.insert_hub(tx, hub)
            store.insert_project(tx, project)
        if bootstrap_key is not None:
            _know(tx, project, bootstrap_key, now=now)
            return BootstrapResult(project=project)
        if store.list_keys(tx, project.id):
            return BootstrapResult(project=project)
        secret = new_secret()
        key = replace(described(project, secret, name="owner", now=now, role=Role.OWNER), scope=Scope.SERVER)
        store.insert_key(tx, key, secret_digest(secret))
        file = ctx.home / OWNER_KEY_FILE
        _write_private(file, secret)
        return BootstrapResult(project=project, new_secret=secret, key_file=file)


def _know(tx: Connection, project: Project, secret: str, *, now: int) -> None:
    known = store.find_key(tx, secret_digest(secret))
    if known is None:
        key = described(project, secret, name="bootstrap", now=now, role=Role.OWNER)
        store.insert_key(tx, replace(key, scope=Scope.SERVER), secret_digest(secret))
    elif known.revoked_at is not None:
        raise InvalidRequest(
            f"The bootstrap key {known.prefix}…{known.last_four} has been revoked. Set another one.",
            code="bootstrap_key_revoked",
            param="SMEDJE_BOOTSTRAP_API_KEY",
        )


def authenticate(ctx: Context, secret: str, *, wanted: str | None = None) -> Principal:
    """Who is calling, and in which project.

    wanted: id of a project, or name of one in the key's hub, to act in instead of the key's own.
    Raises AuthenticationFailed for a secret that is malformed, unknown, expired or revoked, and PermissionDenied when
    the key has no role in the wanted project, whether that exists or not.
    """
    if not _looks_like_a_key(secret):
        raise AuthenticationFailed(
            "This API key is malformed. Check that it was copied whole; the owner key is in the state folder."
        )
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        key = store.find_key(tx, secret_digest(secret))
        home = store.get_project(tx, key.project_id) if key is not None else None
        if key is None or home is None:
            raise AuthenticationFailed(f"This API key (ending in {secret[-4:]}) is not known here.")
        if key.revoked_at is not None:
            raise AuthenticationFailed(f"The API key {key.prefix}…{key.last_four} was revoked.", code="api_key_revoked")
        if key.expires_at is not None and key.expires_at <= ctx.now():
            raise AuthenticationFailed(f"The API key {key.prefix}…{key.last_four} has expired.", code="api_key_expired")
        owner = None if key.member_id is None else member_rows.find_member(tx, key.member_id)
        if owner is not None and owner.disabled_at is not None:
            raise AuthenticationFailed(f"{owner.email}, whose key this is, is disabled.", code="user_disabled")
        grants = _grants(tx, key, home)
        project = home if wanted in (None, "", home.id, home.name) else _wanted_project(tx, home, grants, str(wanted))
        if key.last_used_at is None or key.last_used_at <= now - USE_SECONDS:
            store.touch_key(tx, key.id, now)
    return Principal(
        key_id=key.id,
        role=key.role,
        project=project,
        grants=grants,
        narrowed=key.permissions,
        member_id=key.member_id,
        deployment=key.deployment,
    )


def _grants(tx: Connection, key: ApiKey, home: Project) -> tuple[Grant, ...]:
    """Where a key's roles hold, never further than its scope: its member's assignments, else its own role.

    A project's owner who makes a key for a member must not get into the member's other projects by it.
    """
    if key.member_id is not None:
        given = [
            Grant(role=one.role, hub_id=one.hub_id, project_id=one.project_id)
            for one in member_rows.assignments_of(tx, key.member_id)
        ]
        match key.scope:
            case Scope.SERVER:
                return tuple(given)
            case Scope.HUB:
                return tuple(grant for grant in given if grant.hub_id == home.hub_id)
            case Scope.PROJECT:
                here = [grant for grant in given if grant.covers(home.hub_id, home.id)]
                return tuple(replace(grant, hub_id=home.hub_id, project_id=home.id) for grant in here)
    match key.scope:
        case Scope.SERVER:
            return (Grant(role=key.role),)
        case Scope.HUB:
            return (Grant(role=key.role, hub_id=home.hub_id),)
        case Scope.PROJECT:
            return (Grant(role=key.role, hub_id=home.hub_id, project_id=home.id),)


def _wanted_project(tx: Connection, home: Project, grants: tuple[Grant, ...], wanted: str) -> Project:
    named = [one for one in store.list_projects(tx, hub_id=home.hub_id) if one.name == wanted]
    found = named[0] if named else store.get_project(tx, wanted)
    if (
        found is None
        or found.deleted_at is not None
        or not any(grant.covers(found.hub_id, found.id) for grant in grants)
    ):
        raise PermissionDenied(
            f"The header OpenAI-Project names {wanted[:100]!r}, in which this key has no role. Its own project is "
            f"{home.name} ({home.id}).",
            code="mismatched_project",
            param="OpenAI-Project",
        )
    return found


def create_key(
    ctx: Context, project: Project, *, name: str, role: Role = Role.OWNER, expires_at: int | None = None
) -> tuple[ApiKey, str]:
    """A new key and its secret, which nothing can show again."""
    secret = new_secret()
    key = replace(described(project, secret, name=name, now=ctx.seconds(), role=role), expires_at=expires_at)
    with ctx.database.transaction() as tx:
        store.insert_key(tx, key, secret_digest(secret))
    return key, secret


def list_keys(ctx: Context, project: Project) -> list[ApiKey]:
    """The project's keys, revoked ones included."""
    with ctx.database.transaction() as tx:
        return list(store.list_keys(tx, project.id))


def revoke_key(ctx: Context, project: Project, key_id: str) -> None:
    """End a key. Raises NotFound when this project has no such key."""
    with ctx.database.transaction() as tx:
        if not any(key.id == key_id for key in store.list_keys(tx, project.id)):
            raise NotFound(f"No API key {key_id} in this project.", code="key_not_found", param="key_id")
        store.revoke_key(tx, project.id, key_id, ctx.seconds())


def new_secret() -> str:
    """`smedje_<43 url-safe characters>_<6>`: 256 random bits and a CRC-32 in base 62, so that typing errors show
    without a look-up and secret scanners can match (after GitHub's token format)."""
    body = secrets.token_urlsafe(32)
    return f"smedje_{body}_{_checksum(body)}"


def secret_digest(secret: str) -> str:
    """SHA-256 of a secret, in hex: the only form in which it is kept."""
    return hashlib.sha256(secret.encode("utf-8")).hexdigest()


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode("ascii"))
    text = ""
    for _ in range(6):
        number, digit = divmod(number, len(DIGITS))
        text = DIGITS[digit] + text
    return text


def _looks_like_a_key(secret: str) -> bool:
    if not SHORTEST_SECRET <= len(secret) <= LONGEST_SECRET or not secret.isascii() or not secret.isprintable():
        return False
    found = GENERATED.match(secret)
    return found is None or _checksum(found[1]) == found[2]


def _check_bootstrap_key(secret: str) -> None:
    if " " in secret or not _looks_like_a_key(secret):
        raise InvalidRequest(
            f"The bootstrap key must have {SHORTEST_SECRET} to {LONGEST_SECRET} printable ASCII characters and no "
            f"spaces; it has {len(secret)} characters. A key of the form smedje_… must carry its right checksum.",
            code="invalid_bootstrap_key",
            param="SMEDJE_BOOTSTRAP_API_KEY",
        )


def described(project: Project, secret: str, *, name: str, now: int, role: AnyRole) -> ApiKey:
    """A key as it is kept, for a secret that was just made."""
    return ApiKey(
        id=new_id(KEY),
        project_id=project.id,
        name=name,
        role=role,
        prefix=secret[: len("smedje_") + 4] if secret.startswith("smedje_") else secret[:4],
        last_four=secret[-4:],
        created_at=now,
    )


def _write_private(file: Path, text: str) -> None:
    """Write so that no moment exists in which another user could read the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".new")
    draft.unlink(missing_ok=True)
    number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(number, "w", encoding="ascii") as out:
        out.write(text + "\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
