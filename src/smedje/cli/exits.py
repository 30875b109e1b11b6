"""Exit codes and the two lines a person reads when a command fails.

Knows how each error of ours ends a command and which remedy goes with it; knows nothing of HTTP or terminals.
"""

import sys
import tempfile
import traceback
from pathlib import Path

from smedje.errors import (
    AuthenticationFailed,
    Conflict,
    LimitExceeded,
    NotFound,
    OutOfStorage,
    PermissionDenied,
    SmedjeError,
    TooLarge,
    Unavailable,
)

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
AUTH = 4
LIMIT = 5
CONFLICT = 6
UNAVAILABLE = 7
INTERRUPTED = 130

# error class -> exit code. The nearest class in the tree counts; everything else is FAILED.
CODES: dict[type[SmedjeError], int] = {
    NotFound: NOT_FOUND,
    AuthenticationFailed: AUTH,
    PermissionDenied: AUTH,
    LimitExceeded: LIMIT,
    TooLarge: LIMIT,
    OutOfStorage: LIMIT,
    Conflict: CONFLICT,
    Unavailable: UNAVAILABLE,
}

# error code -> what to do, where the message does not say it already.
REMEDIES = {
    "server_unreachable": "start it with `smedje serve`, or set SMEDJE_BASE_URL to where it runs",
    "server_timeout": "look at the server's log, then run the command again",
    "missing_api_key": "run `smedje serve` once on this machine, which makes a key, or set SMEDJE_API_KEY",
    "invalid_api_key": "set SMEDJE_API_KEY to a key of this server; the first is in the file owner_key of its home",
    "not_a_smedje_server": "set SMEDJE_BASE_URL to a smedje server, for example http://127.0.0.1:8321",
    "port_in_use": "choose another port with --port, or stop the program that holds this one",
    "out_of_storage": "free some space on the server's disk",
    "server_error": "look for the request in the server's log",
}


def exit_code(error: SmedjeError) -> int:
    """The exit code with which this error ends a command."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), FAILED)


def error_lines(error: SmedjeError) -> list[str]:
    """What goes to standard error: `error: ...` on one line, and `fix: ...` where the message alone does not help."""
    lines = ["error: " + " ".join(error.message.split())]
    if error.code in REMEDIES:
        lines.append("fix: " + REMEDIES[error.code])
    return lines


def unexpected(error: Exception) -> int:
    """Report a fault of ours, or a package that is not installed; the exit code. The trace goes to a file."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("smedje"):
        print(f"error: this needs the package {error.name}, which is not installed", file=sys.stderr)
        print("fix: python bootstrap.py setup, or pip install 'smedje[train]'", file=sys.stderr)
        return UNAVAILABLE
    with tempfile.NamedTemporaryFile(
        "w", prefix="smedje-error-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    text = " ".join(str(error).split())[:200]
    print(f"error: unexpected {type(error).__name__}: {text}", file=sys.stderr)
    print(f"fix: this is a fault in smedje; please report it with {Path(file.name)}", file=sys.stderr)
    return FAILED
