"""Personal data and secrets in texts: kinds and places. Knows shapes and checksums; never hands a value on."""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}\b")
_PHONE = re.compile(
    r"(?<![\w+.-])"
    r"(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4})"
    r"(?![\w-])"
)
_CARD = re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]|\.\d)")
_CPR = re.compile(r"(?<!\d)(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])\d{2}-\d{4}(?!\d)")
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"
    r"|\b(?:sk|rk|pk)[-_](?:proj-|live_|test_|ant-)?[A-Za-z0-9_-]{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{35}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bhf_[A-Za-z0-9]{30,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
)
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True)
class Place:
    """Where a text holds something private: characters start to end, and its kind."""

    start: int
    end: int
    kind: str


def find_private(text: str) -> list[Place]:
    """Every e-mail address, phone number, card, IBAN, IP address, CPR number and API key, by place, none overlapping.

    Cards must satisfy Luhn's checksum, IBANs ISO 7064 mod 97; an address of a private or loopback network is none.
    """
    if "@" not in text and not _DIGIT.search(text) and "-----BEGIN" not in text and "_" not in text and "-" not in text:
        return []
    found: list[Place] = []
    for kind, pattern, accept in _KINDS:
        for match in pattern.finditer(text):
            free = all(match.end() <= one.start or match.start() >= one.end for one in found)
            if free and accept(match.group()):
                found.append(Place(match.start(), match.end(), kind))
    return sorted(found, key=lambda place: place.start)


def redact(text: str) -> str:
    """The text with every private place replaced by its kind in brackets, such as [EMAIL]."""
    pieces, last = [], 0
    for place in find_private(text):
        pieces += [text[last : place.start], f"[{place.kind.upper()}]"]
        last = place.end
    return "".join([*pieces, text[last:]]) if pieces else text


def kinds() -> Iterator[str]:
    """The kinds that are looked for."""
    return (kind for kind, _, _ in _KINDS)


def _luhn(text: str) -> bool:
    digits = [int(digit) for digit in _DIGIT.findall(text)]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1 or digits[0] not in (2, 3, 4, 5, 6):
        return False
    doubled = [
        digit if place % 2 == 0 else (2 * digit - 9 if digit > 4 else 2 * digit)
        for place, digit in enumerate(reversed(digits))
    ]
    return sum(doubled) % 10 == 0


def _iban(text: str) -> bool:
    compact = text.replace(" ", "")
    turned = compact[4:] + compact[:4]
    return 15 <= len(compact) <= 34 and int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1


def _public_ip(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _phone(text: str) -> bool:
    return 8 <= len(_DIGIT.findall(text)) <= 15


def _always(text: str) -> bool:
    return bool(text)


_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("api_key", _SECRET, _always),
    ("email", _EMAIL, _always),
    ("iban", _IBAN, _iban),
    ("card", _CARD, _luhn),
    ("cpr", _CPR, _always),
    ("ip_address", _IP, _public_ip),
    ("phone", _PHONE, _phone),
)
