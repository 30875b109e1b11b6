"""ChatGPT's own export, `conversations.json`: a tree of messages a conversation, to the branch that was shown last.

Knows the export's shape; refuses to know chat templates. The shape is not published: this is what exports look like,
and what is not known is left out with its name.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from smedje.data.import_rows import Refused, Row

_SPOKEN = ("text", "multimodal_text")


def is_chatgpt(value: Mapping[str, Any]) -> bool:
    """Whether a decoded JSON object is a conversation of such an export."""
    return isinstance(value.get("mapping"), dict) and "current_node" in value


def chatgpt_row(value: Mapping[str, Any]) -> Row:
    """The conversation that its last message ends, as chat messages.

    Left out, each with its reason: branches that were abandoned, hidden messages, calls of tools and what tools said,
    reasoning, and parts that are not text. Pieces of one answer are joined. Raises Refused for a conversation without
    an answer, and for one whose question is not text, because the answer would stand for nothing.
    """
    branch = list(_branch(value))
    left_out: list[str] = []
    abandoned = sum(isinstance(node, dict) and bool(node.get("message")) for node in value["mapping"].values())
    if abandoned > len(branch):
        left_out += ["a message of another branch"] * (abandoned - len(branch))
    messages: list[dict[str, Any]] = []
    for message in branch:
        role, text, why = _read(message)
        left_out += why
        if text is None:
            continue
        if role == "system" and messages:
            left_out.append("a system message in the middle")
        elif messages and messages[-1]["role"] == role == "assistant":
            messages[-1]["content"] += f"\n\n{text}"
        elif not (role == "assistant" and all(one["role"] == "system" for one in messages)):
            messages.append({"role": role, "content": text})
        else:
            left_out.append("an answer before the first question")
    while messages and messages[-1]["role"] != "assistant":
        left_out.append(f"a {messages.pop()['role']} message after the last answer")
    if not messages:
        raise Refused("a conversation without an answer")
    return Row({"messages": messages}, left_out=tuple(left_out))


def _branch(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The messages from the root to `current_node`."""
    nodes, name = value["mapping"], value.get("current_node")
    path: list[Mapping[str, Any]] = []
    seen: set[str] = set()
    while isinstance(name, str) and isinstance(nodes.get(name), dict):
        if name in seen:
            raise Refused("a conversation whose tree runs in a circle")
        seen.add(name)
        if isinstance(nodes[name].get("message"), dict):
            path.append(nodes[name]["message"])
        name = nodes[name].get("parent")
    if not path:
        raise Refused("a conversation whose last message is not in its tree")
    return iter(path[::-1])


def _read(message: Mapping[str, Any]) -> tuple[str, str | None, list[str]]:
    """Role, text (None to leave the message out) and what is left out of it."""
    author, content = message.get("author"), message.get("content")
    role = author.get("role") if isinstance(author, dict) else None
    kind = content.get("content_type") if isinstance(content, dict) else None
    if role not in ("user", "assistant", "system"):
        return "", None, ["what a tool said" if role == "tool" else f"a message of the author {role!r:.40}"]
    if not isinstance(content, dict) or kind not in _SPOKEN:
        asked = role == "assistant" and message.get("recipient") not in (None, "all")
        return role, None, ["a call of a tool" if asked else f"content of the type {kind!r:.40}"]
    parts = content.get("parts")
    parts = parts if isinstance(parts, list) else []
    text = "\n".join(part for part in parts if isinstance(part, str)).strip()
    metadata = message.get("metadata")
    hidden = isinstance(metadata, dict) and metadata.get("is_visually_hidden_from_conversation")
    if hidden or message.get("weight") == 0:
        return role, None, ["a hidden message"] if text else []
    if role == "assistant" and message.get("recipient") not in (None, "all"):
        return role, None, ["a call of a tool"]
    why = [f"a part of the type {_kind(part)!r:.40}" for part in parts if not isinstance(part, str)]
    if not text and role == "user" and why:
        raise Refused("a question that is not text")
    return role, text or None, why


def _kind(part: object) -> str:
    return str(part.get("content_type")) if isinstance(part, dict) else type(part).__name__
