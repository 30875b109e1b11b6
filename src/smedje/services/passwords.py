"""Passwords: what one must be, and argon2id hashes of them. Knows nothing of whose they are or where they are kept."""

import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from smedje.errors import InvalidRequest

SHORTEST, LONGEST = 12, 256

# OWASP's password storage cheat sheet, first choice: argon2id with 19 MiB, 2 passes, 1 lane.
HASHER = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)
# The hash of a random text that is written down nowhere: an unknown account costs as much time as a known one.
NOBODYS = "$argon2id$v=19$m=19456,t=2,p=1$spclBWt7EoHqYlUvKBDWxw$dw0IY4PprnVLjBi1+9o6oEp5dglQpJQHjTnNekxpBvg"


def hashed(password: str, *, address: str) -> str:
    """The hash to keep. Raises InvalidRequest for a password that is too short, too long or the address itself."""
    text = _normal(password)
    if not SHORTEST <= len(text) <= LONGEST:
        raise InvalidRequest(
            f"A password has {SHORTEST} to {LONGEST} characters; this one has {len(text)}. Several words are good.",
            code="weak_password",
            param="password",
        )
    if text.lower() in (address.lower(), address.lower().partition("@")[0]) or len(set(text)) < 4:
        raise InvalidRequest(
            "A password must not be your address or one character repeated.", code="weak_password", param="password"
        )
    return HASHER.hash(text)


def matches(kept: str | None, password: str) -> bool:
    """Whether a password is the one of this hash; takes as long when there is no hash."""
    try:
        found = HASHER.verify(kept or NOBODYS, _normal(password)[: LONGEST + 1])
    except (VerificationError, InvalidHashError):
        return False
    return found and kept is not None


def outdated(kept: str) -> bool:
    """Whether a hash was made with other parameters than today's."""
    return HASHER.check_needs_rehash(kept)


def _normal(password: str) -> str:
    # The same keys give the same characters on every system (NIST SP 800-63B).
    return unicodedata.normalize("NFKC", password.encode("utf-8", "replace").decode("utf-8"))
