"""Uploaded files as facts: name, size, digest, purpose, status. The bytes live in object storage under the digest."""

from dataclasses import dataclass
from enum import StrEnum


class FilePurpose(StrEnum):
    """What a file is for. `fine-tune-results` is written by the product, never uploaded.

    `user_data` is kept as it is, unchecked: what training files are imported from.
    """

    FINE_TUNE = "fine-tune"
    USER_DATA = "user_data"
    FINE_TUNE_RESULTS = "fine-tune-results"


class FileStatus(StrEnum):
    """`processed` files may be trained on; `error` files are kept with their report."""

    UPLOADED = "uploaded"
    PROCESSED = "processed"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class File:
    """One uploaded or produced file.

    bytes: size. sha256: hex digest of the exact bytes, also where they are kept. examples: parsed rows, None
    where rows have no meaning. status_details: the first problem in words when status is `error`.
    """

    id: str
    project_id: str
    filename: str
    purpose: FilePurpose
    bytes: int
    sha256: str
    status: FileStatus
    created_at: int
    status_details: str | None = None
    examples: int | None = None
    expires_at: int | None = None


def content_key(sha256: str) -> str:
    """Where bytes with this digest live in object storage; user-given names never become paths."""
    return f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def insights_key(file_id: str) -> str:
    """Where what a file is like is kept once it was asked for."""
    return f"insights/{file_id}.json"


def lineage_key(file_id: str) -> str:
    """Where it is kept how a file was made from another."""
    return f"lineage/{file_id}.json"


def pending_key(file_id: str) -> str:
    """Where it is noted that a file is being recorded or deleted, so that a killed server's half of it is undone."""
    return f"pending/{file_id}"


def report_key(file_id: str) -> str:
    """Where a file's data report lives."""
    return f"reports/{file_id}.json"


def traces_key(project_id: str, file_id: str) -> str:
    """Where the digests of a file's rows are kept, also when the file was deleted after jobs had used it."""
    return f"traces/{project_id}/{file_id}"
