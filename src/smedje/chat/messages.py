"""OpenAI-shaped messages as a chat template expects them. Knows the differences between the two; knows no token ids.

Every function takes and returns plain dicts, because templates read plain dicts.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smedje.chat.calls import CallForm, instructions, response_text
from smedje.errors import InvalidRequest, UnsupportedField

if TYPE_CHECKING:
    from smedje.chat.jinja_template import ChatTemplate

Turn = dict[str, Any]
Tools = Sequence[Mapping[str, Any]]


def to_turns(
    messages: Sequence[Mapping[str, Any]], template: "ChatTemplate", form: CallForm, *, tools: Tools | None = None
) -> list[Turn]:
    """One turn for each message, with what the template has no place for put where it has one.

    A system message goes before the user's text (as in Gemma 3's own template). Tools, calls and what tools answered
    become text of the system message, of the answer and of a user's turn, unless `form` is the template's own.
    `developer` becomes `system` unless the template knows it; text parts are joined; a refusal counts as the content;
    the deprecated function call and function role become a tool call and the tool role; arguments become objects.
    Raises InvalidRequest or UnsupportedField naming the message at fault.
    """
    if not messages:
        raise InvalidRequest(
            "There are no messages. Send at least one user message.", code="empty_messages", param="messages"
        )
    turns = [_to_turn(message, f"messages[{index}]", template) for index, message in enumerate(messages)]
    if not form.native:
        turns = _with_calls_as_text(turns, form, tools)
    if turns[0]["role"] == "system" and not template.knows_system:
        return _fold_system(turns)
    return turns


def _to_turn(message: Mapping[str, Any], where: str, template: "ChatTemplate") -> Turn:
    role = message.get("role")
    if not isinstance(role, str):
        raise InvalidRequest(
            f"{where} has no role. Use system, user, assistant or tool.", code="missing_role", param=f"{where}.role"
        )
    if role == "developer" and not template.knows_developer:
        role = "system"
    if role == "function":
        role = "tool"
    content = message.get("content")
    turn: Turn = {"role": role, "content": text_of(message.get("refusal") if content is None else content, where)}
    for key in ("name", "tool_call_id", "reasoning_content"):
        if message.get(key) is not None:
            turn[key] = message[key]
    calls = _tool_calls(message, where)
    if calls:
        turn["tool_calls"] = calls
    return turn


def text_of(content: object, where: str) -> str:
    """The text of a message's content: a string, None, or a list of text parts.

    where: the message, for the error. Raises UnsupportedField for parts that are not text.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        return "".join(_text_of_part(part, f"{where}.content[{index}]") for index, part in enumerate(content))
    raise InvalidRequest(
        f"{where}.content is neither a text nor a list of parts.", code="invalid_content", param=f"{where}.content"
    )


def _text_of_part(part: object, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") in {"text", "input_text", "output_text"}:
        text = part.get("text")
        if isinstance(text, str):
            return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise UnsupportedField(
        f"{where} is of type {kind!r}; only text parts are supported. Send the message as text.",
        code="unsupported_content_part",
        param=where,
    )


def _tool_calls(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    calls = message.get("tool_calls") or []
    old = message.get("function_call")
    if old and not calls:
        calls = [{"type": "function", "function": old}]
    return [_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest(
            f"{where} has no function name. Give it as {{'type': 'function', 'function': {{'name', 'arguments'}}}}.",
            code="invalid_tool_calls",
            param=where,
        )
    # In this order, for templates that print the whole object.
    named = {"name": function["name"], "arguments": _arguments(function.get("arguments"))}
    return {**call, "type": "function", "function": named}


def _arguments(arguments: object) -> object:
    """The API carries arguments as JSON text; templates print them with `tojson`, which would quote a text twice."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        parsed = json.loads(arguments) if arguments.strip() else {}
    except ValueError:
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _with_calls_as_text(turns: Sequence[Turn], form: CallForm, tools: Tools | None) -> list[Turn]:
    """Turns without tool calls and tool roles; what several tools answered in a row is one turn."""
    written: list[Turn] = []
    for turn in turns:
        calls = turn.get("tool_calls")
        if calls:
            content = "\n".join(part for part in (turn["content"], form.write(calls)) if part)
            written.append({**{key: turn[key] for key in turn if key != "tool_calls"}, "content": content})
        elif turn["role"] != "tool":
            written.append(turn)
        elif written and written[-1].get("tool"):
            written[-1]["content"] += "\n" + response_text(turn["content"])
        else:
            written.append({"role": "user", "content": response_text(turn["content"]), "tool": True})
    kept = [{key: turn[key] for key in turn if key != "tool"} for turn in written]
    if not tools:
        return kept
    told = instructions(tools)
    if kept[0]["role"] in ("system", "developer"):
        return [{**kept[0], "content": f"{kept[0]['content']}\n\n{told}"}, *kept[1:]]
    return [{"role": "system", "content": told}, *kept]


def _fold_system(turns: list[Turn]) -> list[Turn]:
    system, *rest = turns
    if rest and rest[0]["role"] == "user":
        first = {**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}
        return [first, *rest[1:]]
    return [{**system, "role": "user"}, *rest]
