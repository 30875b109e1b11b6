"""The rules of one chat example, apart from its tokens: every problem of a decoded line, not the first.

Names of the problems follow OpenAI's cookbook checker (examples/Chat_finetuning_data_prep.ipynb) where it has one.
Knows decoded JSON values; refuses to know files, tokenizers and templates.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from smedje.data.call_rules import check_call_ids, check_calls, check_tools
from smedje.data.problems import Problem, error, kind_of, warning

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MOST_WEIGHT = 100
MESSAGE_KEYS = ("role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call", "refusal")

_ANSWERED = ("user", "tool", "function")
CONTROL_TOKEN = re.compile(
    r"<[|｜][^|｜<>\s]{1,40}[|｜]>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)


def check_example(value: object, line: int) -> Iterator[Problem]:
    """Every problem of the decoded JSON `value` of line `line`. Top-level columns that are not known are accepted."""
    if not isinstance(value, dict):
        yield error(
            line,
            "$",
            "data_type",
            f"The line is {kind_of(value)}, not a JSON object.",
            'Write each line as {"messages": [...]}.',
        )
        return
    yield from check_tools(value, line)
    weight = value.get("weight")
    if weight is not None and not (type(weight) in (int, float) and 0 < weight <= MOST_WEIGHT):
        text = f"The example's weight is {weight!r:.60}."
        remedy = f"Use a number above 0 and at most {MOST_WEIGHT}, or remove the line."
        yield error(line, "$.weight", "invalid_example_weight", text, remedy)
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        yield _missing_messages(value, line)
        return
    for index, message in enumerate(messages):
        yield from _check_message(message, f"$.messages[{index}]", line)
    if all(isinstance(message, dict) and message.get("role") in ROLES for message in messages):
        yield from _check_order(messages, line)
        yield from _check_answers(messages, line)
        yield from check_call_ids(messages, line)


def _missing_messages(value: Mapping[str, Any], line: int) -> Problem:
    remedy = "Give each line a list `messages` of objects with role and content."
    if "messages" in value:
        found = "empty" if value["messages"] == [] else kind_of(value["messages"])
        return error(
            line, "$.messages", "missing_messages_list", f"`messages` is {found}, not a list of messages.", remedy
        )
    for keys in (("prompt", "completion"), ("instruction", "output"), ("conversations",)):
        if all(key in value for key in keys):
            remedy = f"This looks like another format ({', '.join(keys)}). Rewrite each line as chat messages."
    found = ", ".join(sorted(map(str, value))[:8]) or "nothing"
    return error(line, "$", "missing_messages_list", f"There is no `messages`; the line has {found}.", remedy)


def _check_message(message: object, path: str, line: int) -> Iterator[Problem]:
    if not isinstance(message, dict):
        yield error(
            line,
            path,
            "message_data_type",
            f"The message is {kind_of(message)}, not an object.",
            "Write each message as an object with role and content.",
        )
        return
    for key in message:
        if key not in MESSAGE_KEYS:
            yield error(
                line,
                f"{path}.{key}",
                "message_unrecognized_key",
                f"The message has the key {key!r}, which no chat format knows.",
                f"Remove it. Known keys: {', '.join(MESSAGE_KEYS)}.",
            )
    role = message.get("role")
    if "role" not in message:
        yield error(
            line, path, "message_missing_key", "The message has no `role`.", "Add role: user, assistant or system."
        )
    elif role not in ROLES:
        yield error(
            line,
            f"{path}.role",
            "unrecognized_role",
            f"The role is {role!r:.60}.",
            f"Use one of {', '.join(ROLES)}.",
        )
    yield from _check_content(message, path, line)
    yield from _check_extras(message, path, line)


def _check_content(message: Mapping[str, Any], path: str, line: int) -> Iterator[Problem]:
    content = message.get("content")
    calls = message.get("tool_calls") or message.get("function_call") or message.get("refusal")
    if content is None and message.get("role") == "assistant" and calls:
        return
    if "content" not in message:
        yield error(
            line, path, "message_missing_key", "The message has no `content`.", "Add the text, or remove the message."
        )
        return
    path = f"{path}.content"
    if isinstance(content, str):
        texts = [content]
    elif isinstance(content, list):
        problem = _check_parts(content, path, line)
        if problem is not None:
            yield problem
            return
        texts = [part["text"] for part in content]
    else:
        yield error(
            line,
            path,
            "missing_content",
            f"The content is {kind_of(content)}, not a text.",
            "Write the text, or remove the message.",
        )
        return
    if not "".join(texts).strip() and not (calls and message.get("role") == "assistant"):
        yield error(line, path, "missing_content", "The content is empty.", "Write the text, or remove the message.")
    yield from _check_text("".join(texts), path, line)


def _check_parts(parts: list[Any], path: str, line: int) -> Problem | None:
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            return error(
                line,
                f"{path}[{index}]",
                "unsupported_content_part",
                f"The content part is of type {kind!r}; only text can be trained.",
                'Use {"type": "text", "text": ...} or a plain text.',
            )
    return None


def _check_text(text: str, path: str, line: int) -> Iterator[Problem]:
    if "\x00" in text:
        yield error(
            line,
            path,
            "nul_character",
            f"The text holds a NUL character at position {text.index(chr(0)) + 1}.",
            "Remove it; it comes from a broken export.",
        )
    found = CONTROL_TOKEN.search(text)
    if found:
        yield warning(
            line,
            path,
            "control_token_in_content",
            f"The text holds {found.group()!r}, which chat templates use as a control token.",
            "Leave the template's tokens out: smedje writes them itself.",
        )


def _check_extras(message: Mapping[str, Any], path: str, line: int) -> Iterator[Problem]:
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        yield error(
            line,
            f"{path}.weight",
            "invalid_weight",
            f"The weight is {weight!r:.60}.",
            "Use 1 to train the message or 0 to leave it as context.",
        )
    elif weight is not None and message.get("role") != "assistant":
        yield warning(
            line,
            f"{path}.weight",
            "weight_not_used",
            "Only assistant messages are trained, so this weight has no effect.",
            "Remove it.",
        )
    if message.get("name") is not None and not isinstance(message["name"], str):
        yield error(line, f"{path}.name", "invalid_name", "The name is not a text.", "Write a text or remove it.")
    if message.get("role") == "tool" and not isinstance(message.get("tool_call_id"), str):
        yield error(
            line,
            path,
            "missing_tool_call_id",
            "The tool message does not say which call it answers.",
            "Add tool_call_id with the id of the call.",
        )
    yield from check_calls(message, path, line)


def _check_order(messages: list[dict[str, Any]], line: int) -> Iterator[Problem]:
    before = ""
    for index, message in enumerate(messages):
        role, path = message["role"], f"$.messages[{index}].role"
        if role in ("system", "developer") and index > 0:
            yield error(
                line,
                path,
                "wrong_role_order",
                f"A {role} message stands after {before}.",
                "Put one system message first, and only there.",
            )
        elif role == "assistant" and before not in _ANSWERED:
            severe = warning if message.get("weight") == 0 else error
            place = f"follows {before}" if before else "is first"
            yield severe(
                line,
                path,
                "wrong_role_order",
                f"This assistant message {place}, so it answers nothing.",
                "Put the user's message before it, join it with the message before, or give it weight 0.",
            )
        elif role in ("tool", "function") and before not in ("tool", "function") and not _calls(messages, index - 1):
            yield error(
                line,
                path,
                "wrong_role_order",
                f"This {role} message does not follow an assistant message that calls a tool.",
                "Add tool_calls to the assistant message before it, or remove it.",
            )
        elif role == "user" and before == "user":
            yield warning(
                line,
                path,
                "consecutive_user_messages",
                "Two user messages follow each other; some chat templates refuse that.",
                "Join them, or add the answer between them.",
            )
        before = role


def _calls(messages: list[dict[str, Any]], index: int) -> bool:
    return index >= 0 and bool(messages[index].get("tool_calls") or messages[index].get("function_call"))


def _check_answers(messages: list[dict[str, Any]], line: int) -> Iterator[Problem]:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        yield error(
            line,
            "$.messages",
            "example_missing_assistant_message",
            "There is no assistant message, so there is nothing to learn.",
            "Add the answer that the model should give.",
        )
        return
    if messages[-1]["role"] != "assistant":
        yield error(
            line,
            f"$.messages[{len(messages) - 1}].role",
            "last_message_not_assistant",
            f"The last message is from {messages[-1]['role']}, not from the assistant.",
            "End the example with the answer, or remove what follows it.",
        )
    if all(message.get("weight") == 0 for message in answers):
        yield error(
            line,
            "$.messages",
            "no_trained_message",
            "Every assistant message has weight 0, so nothing is trained.",
            "Give the answer that should be learned a weight of 1, or remove the line.",
        )
