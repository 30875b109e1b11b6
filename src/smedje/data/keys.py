"""Keys that stand twice in one JSON object: readers keep one of them silently. Knows JSON text and the chat columns."""

import json
from collections.abc import Iterator
from typing import Any

from smedje.data.problems import Problem

_COLUMNS = ("messages", "tools", "functions", "parallel_tool_calls", "weight")


def check_keys(text: str, line: int) -> Iterator[Problem]:
    """An error for each key that stands twice in the line, its messages or its tools. Other columns do not matter."""
    twice: list[tuple[str, int]] = []
    alive: list[dict[str, Any]] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    twice.append((key, id(found)))
                seen.add(key)
            # Kept, so that no other object gets the same id.
            alive.append(found)
        return found

    try:
        value = json.loads(text, object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return
    if not twice or not isinstance(value, dict):
        return
    places = dict(_places(value))
    for key, owner in twice:
        path = places.get(owner)
        if path is None or (path == "$" and key not in _COLUMNS):
            continue
        yield Problem(
            line,
            f"{path}.{key:.60}",
            "duplicate_key",
            "error",
            f"The key {key!r:.60} stands twice in one object; only the last one would count.",
            "Keep one of them.",
        )


def _places(value: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """The identity and path of every object that training reads."""
    yield id(value), "$"
    waiting: list[tuple[Any, str]] = [(value[key], f"$.{key}") for key in _COLUMNS if key in value]
    while waiting:
        inner, path = waiting.pop()
        if isinstance(inner, dict):
            yield id(inner), path
            waiting += [(part, f"{path}.{key:.60}") for key, part in inner.items()]
        elif isinstance(inner, list):
            waiting += [(part, f"{path}[{index}]") for index, part in enumerate(inner)]
