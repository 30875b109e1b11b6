"""The rules of tools and their calls in one chat example; rules.py has the others.

Knows decoded JSON values; refuses to know files, tokenizers and templates.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from smedje.data.problems import Problem, error, kind_of, warning


def check_tools(value: Mapping[str, Any], line: int) -> Iterator[Problem]:
    """Problems of `tools`, `functions` and `parallel_tool_calls` beside the messages."""
    for key, inner in (("tools", "function"), ("functions", None)):
        tools = value.get(key)
        if tools is None:
            continue
        listed = tools if isinstance(tools, list) else [None]
        functions = [tool.get(inner) if inner and isinstance(tool, dict) else tool for tool in listed]
        if not all(isinstance(function, dict) and isinstance(function.get("name"), str) for function in functions):
            yield error(
                line,
                f"$.{key}",
                "invalid_tools",
                f"`{key}` is not a list of functions with a name.",
                'Write [{"type": "function", "function": {"name": ..., "parameters": {...}}}].',
            )
    parallel = value.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        yield error(
            line,
            "$.parallel_tool_calls",
            "invalid_parallel_tool_calls",
            f"parallel_tool_calls is {kind_of(parallel)}, not true or false.",
            "Use true or false, or remove it.",
        )


def check_calls(message: Mapping[str, Any], path: str, line: int) -> Iterator[Problem]:
    """Problems of the calls in one message."""
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        yield error(
            line,
            f"{path}.tool_calls",
            "invalid_tool_calls",
            f"tool_calls is {kind_of(calls)}, not a list.",
            "Write a list of calls, or remove it.",
        )
        calls = None
    functions = [
        (f"{path}.tool_calls[{i}]", c.get("function") if isinstance(c, dict) else None) for i, c in _pairs(calls)
    ]
    if message.get("function_call") is not None:
        functions.append((f"{path}.function_call", message["function_call"]))
    for place, function in functions:
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            yield error(
                line,
                place,
                "invalid_tool_calls",
                "The call has no function name.",
                'Write {"id": ..., "type": "function", "function": {"name": ..., "arguments": "{...}"}}.',
            )
        elif not _is_json_text(function.get("arguments")):
            yield warning(
                line,
                place,
                "tool_arguments_not_json",
                "The call's arguments are not a text with a JSON object.",
                "Write the arguments as JSON text; the model learns them as they are.",
            )


def _pairs(values: list[Any] | None) -> Iterator[tuple[int, Any]]:
    return iter(enumerate(values or ()))


def _is_json_text(arguments: object) -> bool:
    if not isinstance(arguments, str):
        return False
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def check_call_ids(messages: list[dict[str, Any]], line: int) -> Iterator[Problem]:
    """Results of calls that were not made before."""
    known: set[object] = set()
    for index, message in enumerate(messages):
        calls = message.get("tool_calls")
        known |= {call.get("id") for call in calls if isinstance(call, dict)} if isinstance(calls, list) else set()
        called = message.get("tool_call_id")
        if message["role"] == "tool" and isinstance(called, str) and called not in known:
            yield error(
                line,
                f"$.messages[{index}].tool_call_id",
                "unknown_tool_call_id",
                f"No earlier call has the id {called!r:.60}.",
                "Use the id of the call that this message answers.",
            )
