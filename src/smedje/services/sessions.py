"""Signing in by password, browser sessions and who is behind one.

Knows that a session's secret is kept only as its SHA-256 and that failures are counted before a password is looked at;
knows nothing of cookies.
"""

import secrets
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from smedje.domain.ids import SESSION, new_id
from smedje.domain.projects import Grant, Member, Principal, Project, Role, Session
from smedje.errors import AuthenticationFailed, InvalidRequest, LimitExceeded, PermissionDenied
from smedje.services import passwords
from smedje.services.audit import Subject, record
from smedje.services.context import Context
from smedje.services.projects import USE_SECONDS, secret_digest
from smedje.store import members as member_rows
from smedje.store import projects as project_rows
from smedje.store import sessions as store

LIFE_SECONDS = 12 * 3600
IDLE_SECONDS = 2 * 3600
KEPT_SECONDS = 7 * 24 * 3600

# So many failures within the window are borne: of one account from one address, of one account, from one address.
WINDOW_SECONDS = 15 * 60
MOST_BOTH, MOST_ACCOUNT, MOST_ADDRESS = 5, 20, 100


@dataclass(frozen=True, kw_only=True)
class SignedIn:
    """A member with a session. principal: what they may do in the project they act in; None without any role."""

    member: Member
    session: Session
    principal: Principal | None


def sign_in(ctx: Context, email: str, password: str, *, previous: str | None = None) -> tuple[Session, str]:
    """A new session for whoever has this address and password, and its secret.

    previous: secret of the browser's session so far, which ends. Raises AuthenticationFailed, alike for an unknown
    address and a wrong password, and LimitExceeded after too many failures.
    """
    member = check_password(ctx, email, password)
    with ctx.database.transaction() as tx:
        return begin(ctx, tx, member, how="password", previous=previous)


def check_password(ctx: Context, email: str, password: str) -> Member:
    """The living account with this address and password. Raises AuthenticationFailed and LimitExceeded."""
    account, address = secret_digest(email.strip().lower()), ctx.actor.address or ""
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        store.lock_attempts(tx)
        _refuse_too_many(tx, account=account, address=address, now=now)
        # Counted before it is known to fail, so that many at once do not slip through together.
        store.insert_attempt(tx, account=account, address=address, now=now, forget=now - WINDOW_SECONDS)
        member = member_rows.find_member(tx, email.strip().lower()) if "@" in email else None
        kept = None if member is None else member_rows.password_of(tx, member.id)
    # Outside of the transaction: it is slow on purpose.
    good = passwords.matches(kept, password)
    if member is None or kept is None or not good or member.disabled_at is not None:
        with ctx.database.transaction() as tx:
            record(ctx, tx, "sign_in.failed", Subject(id="" if member is None else member.id), {"how": "password"})
        raise AuthenticationFailed("The e-mail address or the password is wrong.", code="wrong_credentials")
    renewed = passwords.hashed(password, address=email) if passwords.outdated(kept) else None
    with ctx.database.transaction() as tx:
        store.clear_attempts(tx, account=account, address=address)
        if renewed is not None:
            member_rows.set_password(tx, member.id, renewed)
    return member


def begin(ctx: Context, tx: Connection, member: Member, *, how: str, previous: str | None) -> tuple[Session, str]:
    """Start a session for somebody who has just shown who they are; the browser's session so far ends."""
    now = ctx.seconds()
    store.forget_sessions(tx, now - KEPT_SECONDS)
    before = None if previous is None else store.find_session(tx, secret_digest(previous))
    if before is not None:
        store.end_session(tx, before.id, now)
    secret = secrets.token_urlsafe(32)
    session = Session(
        id=new_id(SESSION),
        member_id=member.id,
        project_id=before.project_id if before is not None and before.member_id == member.id else None,
        created_at=now,
        expires_at=now + LIFE_SECONDS,
        last_used_at=now,
    )
    store.insert_session(tx, session, secret_digest(secret))
    member_rows.save_member(tx, replace(member, last_sign_in_at=now))
    actor = replace(ctx.actor, key_id=session.id, member_id=member.id)
    record(replace(ctx, actor=actor), tx, "sign_in.succeeded", Subject(id=member.id), {"how": how})
    return session, secret


def authenticate(ctx: Context, secret: str, *, wanted: str | None = None) -> SignedIn:
    """Who is signed in with this secret, and in which project they act.

    wanted: id or name of a project to act in, instead of the session's own. Raises AuthenticationFailed for a secret
    that is unknown or a session that is over, PermissionDenied when the member has no role in the wanted project.
    """
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        session = store.find_session(tx, secret_digest(secret))
        member = None if session is None else member_rows.find_member(tx, session.member_id)
        if session is None or member is None or _over(session, now) or member.disabled_at is not None:
            raise AuthenticationFailed("This session is over. Sign in again at /login.", code="session_over")
        grants = tuple(
            Grant(role=one.role, hub_id=one.hub_id, project_id=one.project_id)
            for one in member_rows.assignments_of(tx, member.id)
        )
        project = _project(tx, session, grants, wanted)
        if session.last_used_at <= now - USE_SECONDS:
            store.touch_session(tx, session.id, now)
    return SignedIn(member=member, session=session, principal=_principal(session, project, grants))


def choose_project(ctx: Context, secret: str, wanted: str) -> SignedIn:
    """Let the session act in another project from now on. Raises PermissionDenied without a role there."""
    found = authenticate(ctx, secret, wanted=wanted)
    assert found.principal is not None
    with ctx.database.transaction() as tx:
        store.move_session(tx, found.session.id, found.principal.project.id)
    return found


def sign_out(ctx: Context, secret: str) -> None:
    """End the session of this secret, if there is one."""
    with ctx.database.transaction() as tx:
        session = store.find_session(tx, secret_digest(secret))
        if session is None or session.ended_at is not None:
            return
        store.end_session(tx, session.id, ctx.seconds())
        actor = replace(ctx.actor, key_id=session.id, member_id=session.member_id)
        record(replace(ctx, actor=actor), tx, "signed_out", Subject(id=session.member_id))


def change_password(ctx: Context, caller: SignedIn, current: str, new: str) -> None:
    """A new password for who is signed in; their other sessions end.

    Raises InvalidRequest for a wrong current or a weak new one, and LimitExceeded after too many wrong ones.
    """
    try:
        member = check_password(ctx, caller.member.email, current)
    except AuthenticationFailed:
        raise InvalidRequest("The password so far is wrong.", code="wrong_password", param="current") from None
    kept = passwords.hashed(new, address=member.email)
    with ctx.database.transaction() as tx:
        member_rows.set_password(tx, member.id, kept)
        store.end_sessions(tx, member.id, ctx.seconds(), but=caller.session.id)
        record(ctx, tx, "user.password_set", Subject(id=member.id))


def no_role(member: Member) -> PermissionDenied:
    """The error for somebody who is known and may do nothing yet."""
    return PermissionDenied(
        f"{member.email} has no role in any project yet. Ask an owner for one: smedje members add {member.email} "
        "--role ROLE.",
        code="no_role",
    )


def _refuse_too_many(tx: Connection, *, account: str, address: str, now: int) -> None:
    since = now - WINDOW_SECONDS
    found = store.count_attempts(tx, account=account, address=address, since=since)
    if found.both < MOST_BOTH and found.account < MOST_ACCOUNT and found.address < MOST_ADDRESS:
        return
    oldest = store.oldest_attempt(tx, account=account, address=address, since=since)
    raise LimitExceeded(
        "Too many attempts to sign in have failed. Wait a little before the next one.",
        code="too_many_attempts",
        retry_after=max(1, (oldest or now) + WINDOW_SECONDS - now),
    )


def _over(session: Session, now: int) -> bool:
    return session.ended_at is not None or session.expires_at <= now or session.last_used_at + IDLE_SECONDS <= now


def _principal(session: Session, project: Project | None, grants: tuple[Grant, ...]) -> Principal | None:
    if project is None:
        return None
    # A session's ceiling is that of its member: the grants alone say what it may do.
    return Principal(key_id=session.id, role=Role.OWNER, project=project, grants=grants, member_id=session.member_id)


def _project(tx: Connection, session: Session, grants: tuple[Grant, ...], wanted: str | None) -> Project | None:
    mine = [one for one in project_rows.list_projects(tx) if any(grant.covers(one.hub_id, one.id) for grant in grants)]
    if not wanted:
        return next((one for one in mine if one.id == session.project_id), mine[0] if mine else None)
    named = [one for one in mine if wanted in (one.id, one.name)]
    if len(named) != 1:
        problem = "is the name of several projects; use its id" if named else "is no project in which you have a role"
        raise PermissionDenied(f"{wanted[:100]!r} {problem}.", code="mismatched_project", param="OpenAI-Project")
    return named[0]
