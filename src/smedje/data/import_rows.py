"""One row of another format to one chat line, with what is left out of it. Knows rows; knows no files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smedje.errors import InvalidRequest

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
USED: Mapping[str, frozenset[str]] = {
    "chat": frozenset({"messages", "tools", "functions", "parallel_tool_calls", "weight"}),
    "preference": frozenset(
        {
            "input",
            "preferred_output",
            "non_preferred_output",
            "preferred_completion",
            "non_preferred_completion",
        }
    ),
    "chosen-rejected": frozenset({"prompt", "chosen", "rejected", "system"}),
    "sharegpt": frozenset({"conversations", "conversation", "system", "tools"}),
    "alpaca": frozenset({"instruction", "input", "output", "system", "history"}),
    "prompt-completion": frozenset({"prompt", "completion", "system"}),
}


class Refused(Exception):
    """A row that cannot be a chat example; the text says why."""


@dataclass(frozen=True)
class Row:
    """A chat line as JSON values. left_out: what of the source row has no place in it, one reason a piece."""

    body: dict[str, Any]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """Which columns hold what. Either user and assistant, the answer; or messages, a list of messages or turns."""

    user: str | None = None
    assistant: str | None = None
    system: str | None = None
    messages: str | None = None


def check_mapping(given: Mapping[str, str]) -> Mapped | None:
    """The mapping of roles to columns, None for none. Raises InvalidRequest that names what is allowed."""
    if not given:
        return None
    whole = {"messages"} <= given.keys() <= {"messages", "system"}
    pair = {"user", "assistant"} <= given.keys() <= {"user", "assistant", "system"}
    if not (whole or pair) or not all(given.values()):
        raise InvalidRequest(
            "The columns need user=NAME and assistant=NAME, or messages=NAME; system=NAME may be added.",
            code="invalid_value",
            param="columns",
        )
    return Mapped(**given)


def format_of(value: Mapping[str, Any], columns: Mapped | None) -> str:
    """The format that the row's columns speak for. Raises Refused when none does."""
    if columns is not None:
        return "columns"
    for name, keys in (
        ("chat", ("messages",)),
        ("preference", ("input", "preferred_output")),
        ("preference", ("input", "preferred_completion")),
        ("sharegpt", ("conversations",)),
        ("sharegpt", ("conversation",)),
        ("chosen-rejected", ("chosen", "rejected")),
        ("alpaca", ("instruction", "output")),
        ("prompt-completion", ("prompt", "completion")),
    ):
        if all(key in value for key in keys):
            return name
    raise Refused("no known format; map its columns")


def convert_row(value: Mapping[str, Any], form: str, columns: Mapped | None) -> Row:
    """The row as a chat line. form: a key of USED, or "columns". Raises Refused."""
    match form:
        case "chat" | "preference":
            return Row({key: value[key] for key in value if key in USED[form]})
        case "chosen-rejected":
            return Row(_chosen(value))
        case "sharegpt":
            turns = value.get("conversations", value.get("conversation"))
            tools = {"tools": value["tools"]} if isinstance(value.get("tools"), list) else {}
            return Row({"messages": [*_system(value), *_turns(turns)], **tools})
        case "alpaca":
            return Row({"messages": _alpaca(value)})
        case "prompt-completion":
            return Row({"messages": _prompt_completion(value)})
    if columns is None:
        raise Refused("no columns were named")
    return Row({"messages": _mapped(value, columns)})


def unused(value: Mapping[str, Any], form: str, columns: Mapped | None) -> list[str]:
    """Columns of the row that its format has no place for, and that hold something."""
    if form == "columns" and columns is not None:
        used = frozenset(filter(None, (columns.user, columns.assistant, columns.system, columns.messages)))
    else:
        used = USED.get(form, frozenset())
    return [str(name) for name, held in value.items() if name not in used and held not in (None, "")]


def _turns(turns: object) -> list[dict[str, Any]]:
    """Messages in OpenAI's or ShareGPT's spelling."""
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise Refused("conversations is not a list of objects")
    if all("role" in turn and "content" in turn for turn in turns):
        named = [turn["role"] for turn in turns]
        roles = [_ROLES.get(role, role) if isinstance(role, str) else role for role in named]
        return [{**turn, "role": role} for turn, role in zip(turns, roles, strict=True)]
    messages = []
    for turn in turns:
        role = turn.get("from", turn.get("role"))
        if not isinstance(role, str) or role not in _ROLES:
            raise Refused("a speaker that is neither human, gpt nor system")
        messages.append({"role": _ROLES[role], "content": turn.get("value", turn.get("content"))})
    return messages


def _alpaca(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = _system(value)
    history = value.get("history") or []
    if not isinstance(history, list):
        raise Refused("history is not a list of pairs")
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise Refused("history is not a list of pairs")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    parts = [part for part in (value.get("instruction"), value.get("input")) if part not in (None, "")]
    if not all(isinstance(part, str) for part in parts):
        raise Refused("instruction or input is not a text")
    return [*messages, {"role": "user", "content": "\n\n".join(parts)}, _answer(value.get("output"))]


def _prompt_completion(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    prompt, completion = value.get("prompt"), value.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return [*prompt, *completion]
    return [*_system(value), {"role": "user", "content": prompt}, _answer(completion)]


def _chosen(value: Mapping[str, Any]) -> dict[str, Any]:
    """A preference pair in the spelling of TRL: two texts after a prompt, or two conversations that begin alike."""
    prompt, pair = value.get("prompt"), (value.get("chosen"), value.get("rejected"))
    if all(isinstance(one, str) for one in pair):
        asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        answers = [_answer(one) for one in pair]
    else:
        both = [_turns(one) for one in pair]
        if isinstance(prompt, list) and all(len(one) == 1 for one in both):
            asked = _turns(prompt)
        elif both[0][:-1] == both[1][:-1]:
            asked = both[0][:-1]
        else:
            raise Refused("chosen and rejected do not begin alike")
        answers = [one[-1] for one in both]
    return {
        "input": {"messages": [*_system(value), *asked]},
        "preferred_output": [answers[0]],
        "non_preferred_output": [answers[1]],
    }


def _mapped(value: Mapping[str, Any], columns: Mapped) -> list[dict[str, Any]]:
    for name in (columns.user, columns.assistant, columns.messages):
        if name is not None and name not in value:
            raise Refused(f"no column {name}")
    system = value.get(columns.system) if columns.system else None
    first = [{"role": "system", "content": str(system)}] if system else []
    if columns.messages is not None:
        return [*first, *_turns(value[columns.messages])]
    assert columns.user is not None, "a mapping has messages, or user and assistant"
    assert columns.assistant is not None, "a mapping has messages, or user and assistant"
    texts = [
        "" if text is None else text if isinstance(text, str) else str(text)
        for text in (value[columns.user], value[columns.assistant])
    ]
    return [*first, {"role": "user", "content": texts[0]}, _answer(texts[1])]


def _system(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": value["system"]}] if value.get("system") else []


def _answer(text: Any) -> dict[str, Any]:
    # Old completion files begin answers with a space, which belonged to their tokens.
    return {"role": "assistant", "content": text.strip() if isinstance(text, str) else text}
