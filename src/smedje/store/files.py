"""Queries for uploaded and produced files: the facts, never the bytes."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, text, update

from smedje.domain.files import File, FilePurpose, FileStatus
from smedje.errors import NotFound
from smedje.store.paging import Listing, page
from smedje.store.tables import files


def insert_file(tx: Connection, file: File) -> None:
    """Record a file whose bytes are already in object storage."""
    tx.execute(insert(files).values(**asdict(file)))


def get_file(tx: Connection, project_id: str, file_id: str) -> File | None:
    """The project's file with this id."""
    row = tx.execute(select(files).where(files.c.project_id == project_id, files.c.id == file_id)).first()
    return None if row is None else _file(row)


def list_files(
    tx: Connection,
    project_id: str,
    *,
    purpose: FilePurpose | None = None,
    after: str | None = None,
    limit: int,
    order: str = "desc",
) -> list[File]:
    """At most `limit` files, newest first or oldest first (order "asc"). Raises NotFound for an unknown `after`."""
    filters = [] if purpose is None else [files.c.purpose == purpose.value]
    listing = Listing(table=files, scope=[files.c.project_id == project_id], filters=filters)
    return [_file(row) for row in page(tx, listing, after=after, limit=limit, order=order)]


def save_file(tx: Connection, file: File) -> None:
    """Replace what may change: status, its details, examples, expiry. Raises NotFound when the file is gone."""
    changes = {name: getattr(file, name) for name in ("status", "status_details", "examples", "expires_at")}
    done = tx.execute(
        update(files).where(files.c.project_id == file.project_id, files.c.id == file.id).values(**changes)
    )
    if done.rowcount == 0:
        raise NotFound(f"No such File object: {file.id}", code="file_not_found", param="id")


def delete_file(tx: Connection, project_id: str, file_id: str) -> bool:
    """Forget a file; returns whether the project had it. The bytes stay: see digest_in_use."""
    return tx.execute(delete(files).where(files.c.project_id == project_id, files.c.id == file_id)).rowcount > 0


def digest_in_use(tx: Connection, sha256: str) -> bool:
    """Whether any project's file has these bytes.

    Until the transaction ends nobody else can get an answer for the same digest, or insert after asking, so that
    deleting bytes and recording a file with the same bytes cannot cross: ask here before either.
    """
    if tx.dialect.name == "postgresql":
        # SQLite has one writer at a time anyway.
        tx.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:digest, 0))"), {"digest": sha256})
    return tx.execute(select(files.c.seq).where(files.c.sha256 == sha256).limit(1)).first() is not None


def _file(row: Row[Any]) -> File:
    return File(
        id=row.id,
        project_id=row.project_id,
        filename=row.filename,
        purpose=FilePurpose(row.purpose),
        bytes=row.bytes,
        sha256=row.sha256,
        status=FileStatus(row.status),
        created_at=row.created_at,
        status_details=row.status_details,
        examples=row.examples,
        expires_at=row.expires_at,
    )
