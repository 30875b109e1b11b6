"""Ids with type prefixes. Knows how an id looks; knows nothing of where it is kept."""

import secrets
import string

ALPHABET = string.ascii_letters + string.digits

HUB = "hub_"
PROJECT = "proj_"
KEY = "key_"
MEMBER = "user_"
SESSION = "sess_"
ROLE = "role_"
AUDIT = "audit-"
RESERVATION = "rsv-"
FILE = "file-"
JOB = "ftjob-"
RUN = "run-"
EVENT = "ftevent-"
CHECKPOINT = "ftckpt_"
DEPLOYMENT = "dep-"
USAGE = "use-"
WEBHOOK = "we_"
EVENT_SENT = "evt_"
ERASURE = "erase-"
COMPLETION = "chatcmpl-"
CALL = "call_"


def new_id(prefix: str) -> str:
    """A fresh id: the prefix and 24 random letters and digits (142 bits)."""
    return prefix + "".join(secrets.choice(ALPHABET) for _ in range(24))


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` has the form of an id with this prefix; says nothing of whether the object exists."""
    rest = text.removeprefix(prefix)
    return text.startswith(prefix) and len(rest) == 24 and all(c in ALPHABET for c in rest)
