"""Edits of one line's messages: trimmed, cleaned, merged, redacted. Values to values; knows no file."""

from collections.abc import Callable, Mapping
from typing import Any

from smedje.data.personal import redact
from smedje.data.preference import SPELLINGS
from smedje.data.rules import CONTROL_TOKEN, MESSAGE_KEYS
from smedje.data.said import arguments

Messages = list[dict[str, Any]]
# Places of lists of messages in a line; the first is the conversation, the others are answers to it.
_PLACES = (("messages",), ("input", "messages"), *((key,) for pair in SPELLINGS for key in pair))


def edit_line(value: dict[str, Any], step: str, *, system: str | None = None) -> dict[str, Any]:
    """The line's value after one edit; the same value when there is nothing to edit. system: for add_system_prompt."""
    new = dict(value)
    for place in _PLACES:
        holder = new
        for key in place[:-1]:
            inner = holder.get(key)
            if not isinstance(inner, dict):
                break
            holder[key] = holder = dict(inner)
        else:
            messages = holder.get(place[-1])
            if isinstance(messages, list) and messages and all(isinstance(one, dict) for one in messages):
                holder[place[-1]] = _edited(messages, step, place, system)
    if step in _TEXTS and isinstance(new.get("text"), str):
        new["text"] = _TEXTS[step](new["text"])
    return new


def _edited(messages: Messages, step: str, place: tuple[str, ...], system: str | None) -> Messages:
    whole = place == ("messages",) and any(one.get("role") == "assistant" for one in messages)
    match step:
        case "trim":
            return _trimmed(messages, to_last_answer=whole)
        case "clean":
            return [_cleaned(message) for message in messages]
        case "merge":
            return _merged(messages)
        case "redact":
            return [_redacted(message) for message in messages]
        case "add_system_prompt" if place[-1] == "messages" and system is not None:
            first = messages[0].get("role") in ("system", "developer")
            return messages if first else [{"role": "system", "content": system}, *messages]
    return messages


def _trimmed(messages: Messages, *, to_last_answer: bool) -> Messages:
    last = max((place for place, one in enumerate(messages) if one.get("role") == "assistant"), default=-1)
    kept = messages[: last + 1] if to_last_answer else messages
    return [_with_texts(one, str.strip) for one in kept]


def _cleaned(message: dict[str, Any]) -> dict[str, Any]:
    new = {key: value for key, value in message.items() if key in MESSAGE_KEYS}
    if new.get("role") != "assistant":
        new.pop("weight", None)
    return _with_texts(new, _clean)


def _clean(text: str) -> str:
    return CONTROL_TOKEN.sub("", text).replace("\x00", "")


def _merged(messages: Messages) -> Messages:
    """Neighbours of one role become one message, where both are plain texts that count alike."""
    merged: Messages = []
    for message in messages:
        before = merged[-1] if merged else {}
        alike = before.get("role") == message.get("role") and message.get("role") in ("user", "assistant")
        plain = all(one.keys() <= {"role", "content", "weight"} for one in (before, message))
        texts = [one.get("content") for one in (before, message)]
        same_weight = before.get("weight") == message.get("weight")
        if alike and plain and same_weight and all(isinstance(text, str) for text in texts):
            merged[-1] = {**before, "content": "\n\n".join(str(text) for text in texts)}
        else:
            merged.append(message)
    return merged


def _redacted(message: dict[str, Any]) -> dict[str, Any]:
    new = _with_texts(message, redact)
    calls = new.get("tool_calls")
    if isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls
    ):
        new["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": redact(text)}} if (text := arguments(call)) else call
            for call in calls
        ]
    return new


def _with_texts(message: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The message with its content's texts changed; white space at the edges of parts is theirs to keep."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": change(content)}
    if isinstance(content, list) and change is not str.strip:
        parts = [
            {**part, "text": change(part["text"])}
            if isinstance(part, dict) and isinstance(part.get("text"), str)
            else part
            for part in content
        ]
        return {**message, "content": parts}
    return message


_TEXTS: Mapping[str, Callable[[str], str]] = {"trim": str.strip, "clean": _clean, "redact": redact}
