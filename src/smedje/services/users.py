"""Accounts of people, for the whole server: making them, setting passwords, disabling them.

Knows that whoever may set a password may become anyone, so all of it needs a permission for the whole server. Service
identities are members like others; they have an address in SERVICE_DOMAIN and nobody signs in as one.
"""

from dataclasses import dataclass, replace

from sqlalchemy import Connection

from smedje.domain.projects import Member, MemberKind, Permission, Principal
from smedje.errors import Conflict, InvalidRequest, NotFound
from smedje.services import passwords
from smedje.services.access import demand
from smedje.services.audit import Subject, record
from smedje.services.context import Context
from smedje.services.hubs import clean_text
from smedje.services.members import checked_email, new_member
from smedje.store import members as store
from smedje.store import sessions as session_rows


@dataclass(frozen=True, kw_only=True)
class User:
    """A member as an account: whether there is a password to sign in with."""

    member: Member
    has_password: bool


@dataclass(frozen=True, kw_only=True)
class UserForm:
    """What a caller says about an account. None leaves a field as it is."""

    name: str | None = None
    password: str | None = None
    disabled: bool | None = None


def list_users(ctx: Context, caller: Principal, *, after: str | None, limit: int) -> list[User]:
    """At most `limit` accounts of the whole server, newest first. Needs users.read for the whole server."""
    demand(caller, Permission.USERS_READ)
    with ctx.database.transaction() as tx:
        found = store.page_members(tx, after=after, limit=limit)
    return [User(member=member, has_password=has_password) for member, has_password in found]


def get_user(ctx: Context, caller: Principal, email_or_id: str) -> User:
    """One account, by address or id. Needs users.read for the whole server. Raises NotFound."""
    demand(caller, Permission.USERS_READ)
    with ctx.database.transaction() as tx:
        return _user(tx, email_or_id)


def create_user(ctx: Context, caller: Principal, *, email: str, name: str | None, password: str | None) -> User:
    """A new account, without any role. Needs users.write for the whole server.

    Without a password the person can sign in only through the identity provider. Raises Conflict for a known address.
    """
    demand(caller, Permission.USERS_WRITE)
    member = new_member(checked_email(email), name, ctx.seconds())
    kept = _hashed(member, password)
    with ctx.database.transaction() as tx:
        if not store.insert_member(tx, member):
            raise Conflict(
                f"{member.email} is known already. Set a password with PATCH /api/users/{member.email}.",
                code="user_exists",
                param="email",
            )
        store.set_password(tx, member.id, kept)
        record(ctx, tx, "user.created", Subject(id=member.id), {"password": int(kept is not None)})
    return User(member=member, has_password=kept is not None)


def update_user(ctx: Context, caller: Principal, email_or_id: str, form: UserForm) -> User:
    """The account with what the form says. Needs users.write for the whole server. Raises NotFound.

    A new password or disabling ends every session; a disabled member's keys do nothing until enabled again.
    """
    demand(caller, Permission.USERS_WRITE)
    now = ctx.seconds()
    with ctx.database.transaction() as tx:
        before = _user(tx, email_or_id)
    kept = _hashed(before.member, form.password)
    with ctx.database.transaction() as tx:
        member = _user(tx, before.member.id).member
        if form.name is not None:
            member = replace(member, name=clean_text(form.name, "name"))
        if form.disabled is not None:
            member = replace(member, disabled_at=(member.disabled_at or now) if form.disabled else None)
        store.save_member(tx, member)
        if kept is not None:
            store.set_password(tx, member.id, kept)
        if kept is not None or form.disabled:
            session_rows.end_sessions(tx, member.id, now)
        if kept is not None:
            record(ctx, tx, "user.password_set", Subject(id=member.id))
        if form.disabled is not None or form.name is not None:
            record(ctx, tx, "user.updated", Subject(id=member.id), {"disabled": int(member.disabled_at is not None)})
        return _user(tx, member.id)


def _hashed(member: Member, password: str | None) -> str | None:
    if password is None:
        return None
    if member.kind is MemberKind.SERVICE:
        raise InvalidRequest(
            f"{member.email} is a service identity: nobody signs in as one. Make it a key instead.",
            code="service_has_no_password",
            param="password",
        )
    return passwords.hashed(password, address=member.email)


def _user(tx: Connection, email_or_id: str) -> User:
    member = store.find_member(tx, email_or_id.lower() if "@" in email_or_id else email_or_id)
    if member is None:
        raise NotFound(f"There is no user {email_or_id[:100]!r}.", code="user_not_found", param="user")
    return User(member=member, has_password=store.password_of(tx, member.id) is not None)
