"""Queries for browser sessions and for attempts to sign in."""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, or_, select, text, update

from smedje.domain.projects import Session
from smedje.store.tables import sessions, sign_in_attempts

# Any number that nothing else in the same PostgreSQL database uses for advisory locks.
ATTEMPTS_LOCK = 0x536D6564_7369


def insert_session(tx: Connection, session: Session, sha256: str) -> None:
    """Record a session. sha256: hex digest of its cookie's secret."""
    tx.execute(sessions.insert().values(**asdict(session), sha256=sha256))


def find_session(tx: Connection, sha256: str) -> Session | None:
    """The session whose secret has this digest; an ended or expired one too."""
    row = tx.execute(select(sessions).where(sessions.c.sha256 == sha256)).first()
    return None if row is None else _session(row)


def touch_session(tx: Connection, session_id: str, now: int) -> None:
    """Remember when a session was last used."""
    tx.execute(update(sessions).where(sessions.c.id == session_id).values(last_used_at=now))


def move_session(tx: Connection, session_id: str, project_id: str) -> None:
    """Let a session act in another project from now on."""
    tx.execute(update(sessions).where(sessions.c.id == session_id).values(project_id=project_id))


def end_session(tx: Connection, session_id: str, now: int) -> None:
    """End a session; one that ended before keeps its time."""
    _end(tx, sessions.c.id == session_id, now)


def end_sessions(tx: Connection, member_id: str, now: int, *, but: str | None = None) -> None:
    """End every session of a member, save the one with the id `but`."""
    _end(tx, and_(sessions.c.member_id == member_id, sessions.c.id != (but or "")), now)


def forget_sessions(tx: Connection, before: int) -> None:
    """Delete sessions that are over since before that time."""
    tx.execute(delete(sessions).where(or_(sessions.c.expires_at < before, sessions.c.ended_at < before)))


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """How many attempts have failed lately: by the account, from the address, and by the account from there."""

    account: int
    address: int
    both: int


def lock_attempts(tx: Connection) -> None:
    """Wait until no other transaction counts attempts and adds its own. SQLite has one writer at a time anyway."""
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ATTEMPTS_LOCK})


def count_attempts(tx: Connection, *, account: str, address: str, since: int) -> Attempts:
    """Attempts after `since` that have not succeeded."""
    by, there = sign_in_attempts.c.account == account, sign_in_attempts.c.address == address

    def count(which: ColumnElement[bool]) -> int:
        query = select(func.count()).select_from(sign_in_attempts)
        return tx.scalar(query.where(which, sign_in_attempts.c.at > since)) or 0

    return Attempts(account=count(by), address=count(there), both=count(and_(by, there)))


def oldest_attempt(tx: Connection, *, account: str, address: str, since: int) -> int | None:
    """When the first of them was, of this account or from this address."""
    either = or_(sign_in_attempts.c.account == account, sign_in_attempts.c.address == address)
    found: int | None = tx.scalar(select(func.min(sign_in_attempts.c.at)).where(either, sign_in_attempts.c.at > since))
    return found


def insert_attempt(tx: Connection, *, account: str, address: str, now: int, forget: int) -> None:
    """Count an attempt, and delete those from before `forget`. It counts until it is cleared."""
    tx.execute(delete(sign_in_attempts).where(sign_in_attempts.c.at < forget))
    tx.execute(sign_in_attempts.insert().values(account=account, address=address, at=now))


def clear_attempts(tx: Connection, *, account: str, address: str) -> None:
    """Forget the failures of an account from an address, after it has signed in from there."""
    found = (sign_in_attempts.c.account == account, sign_in_attempts.c.address == address)
    tx.execute(delete(sign_in_attempts).where(*found))


def _end(tx: Connection, which: ColumnElement[bool], now: int) -> None:
    tx.execute(update(sessions).where(which, sessions.c.ended_at.is_(None)).values(ended_at=now))


def _session(row: Row[Any]) -> Session:
    values = row._asdict()
    del values["seq"], values["sha256"]
    return Session(**values)
