"""Every error a person can meet, as one tree. Knows messages, codes and parameters; nothing of HTTP or exit codes.

SmedjeError
├── InvalidRequest          the request, file or option is wrong; the message says how to mend it
│   ├── UnsupportedField    a field or value that is understood but not offered
│   └── InvalidData         a data file has problems; carries them line by line
├── AuthenticationFailed    no key, or a key that is malformed, unknown, expired or revoked
├── PermissionDenied        the key is good, its role does not allow this
├── NotFound                no such object in this project (a foreign object looks exactly the same)
├── Conflict                the object's state forbids it; retrying the same call cannot help
├── TooLarge                more bytes than the limit
├── LimitExceeded           a rate limit, quota or budget
├── OutOfStorage            the disk or bucket is full; nothing half-written stays
├── Unavailable             a part that is needed is not there now (model not pulled, engine not started)
└── InternalError           our fault; the message never carries a secret or prompt text
"""

from collections.abc import Sequence
from typing import Any


class SmedjeError(Exception):
    """Base of all errors with a message for people.

    message: one or two sentences: what, where, which value, what to do.
    code: stable machine word (`invalid_n_examples`); documented in docs/errors.md.
    param: the request field or file at fault, if any.
    """

    default_code = "error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.code, self.param))


def _rebuild(kind: type[SmedjeError], message: str, code: str, param: str | None) -> SmedjeError:
    return kind(message, code=code, param=param)


class InvalidRequest(SmedjeError):
    """The request, file or option is wrong."""

    default_code = "invalid_request"


class UnsupportedField(InvalidRequest):
    """A field or value that is understood but not offered."""

    default_code = "unsupported_field"


class InvalidData(InvalidRequest):
    """A data file has problems. `problems` holds the first of them as dicts: line, path, code, message, remedy."""

    default_code = "invalid_training_data"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        problems: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.problems = tuple(problems)


class AuthenticationFailed(SmedjeError):
    """No key, or a key that is malformed, unknown, expired or revoked."""

    default_code = "invalid_api_key"


class PermissionDenied(SmedjeError):
    """The key is good, its role does not allow this."""

    default_code = "permission_denied"


class NotFound(SmedjeError):
    """No such object in this project."""

    default_code = "not_found"


class Conflict(SmedjeError):
    """The object's state forbids the call; retrying it unchanged cannot help."""

    default_code = "conflict"


class TooLarge(SmedjeError):
    """More bytes than the limit."""

    default_code = "too_large"


class LimitExceeded(SmedjeError):
    """A rate limit, quota or budget stands in the way. retry_after: seconds, None when waiting alone cannot help."""

    default_code = "limit_exceeded"

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after = retry_after


class OutOfStorage(SmedjeError):
    """The disk or bucket is full; nothing half-written stays."""

    default_code = "out_of_storage"


class Unavailable(SmedjeError):
    """A part that is needed is not there now."""

    default_code = "unavailable"


class InternalError(SmedjeError):
    """Our fault; the message carries no secret and no prompt text."""

    default_code = "server_error"
