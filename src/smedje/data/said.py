"""What is said in an example: its question, its answer, labels among answers, answers that say nothing, private data.

Knows one example at a time, or a list of answers; refuses to know files.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from smedje.data.parse import ChatExample
from smedje.data.personal import find_private

MOST_LABELS = 50
LONGEST_LABEL = 80
_BOILERPLATE = re.compile(
    r"^\W*$|^(?:n/?a|todo|tbd|none|null|test|undefined|\?+|lorem ipsum.*)\W*$|\bas an ai (?:language )?model\b"
    r"|^i(?:'m| am) sorry,? but i (?:can(?:no|')t|am unable to)\b",
    re.IGNORECASE,
)


def spoken(example: ChatExample) -> str:
    """What is said in an example, without system messages, which often are the same everywhere."""
    return "\n".join(one.content for one in example.messages if one.content and one.role not in ("system", "developer"))


def question(example: ChatExample) -> bytes:
    """16 bytes that are equal for examples that ask the same: everything before the last answer, compared loosely."""
    texts = [f"{one.role}:{' '.join((one.content or '').lower().split())}" for one in example.messages[:-1]]
    return blake2b("\n".join(texts).encode("utf-8", "replace"), digest_size=16).digest()


def answer(example: ChatExample) -> str:
    """The last message's text without white space around it."""
    return (example.messages[-1].content or "").strip()


def is_boilerplate(text: str) -> bool:
    """Whether an answer says nothing: only signs, a placeholder, or a model's stock refusal."""
    return bool(_BOILERPLATE.search(text))


def label_counts(answers: Sequence[str]) -> dict[str, int] | None:
    """How often each answer stands, most first, when they look like labels: few, short, and mostly repeated."""
    counts = Counter(answers)
    few = 2 <= len(counts) <= min(MOST_LABELS, len(answers) // 4)
    return dict(counts.most_common()) if few and all(0 < len(one) <= LONGEST_LABEL for one in counts) else None


def private_kinds(*examples: ChatExample) -> set[str]:
    """The kinds of private data in examples."""
    messages = [one for example in examples for one in example.messages]
    texts = [one.content for one in messages if one.content]
    for message in messages:
        texts += [argument for call in message.tool_calls if (argument := arguments(call))]
    return {place.kind for text in texts for place in find_private(text)}


def arguments(call: Mapping[str, Any]) -> str | None:
    """The arguments of a call as text, None when they are none."""
    found = (call.get("function") or {}).get("arguments")
    return found if isinstance(found, str) else None
