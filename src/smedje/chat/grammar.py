"""What an answer must look like, as a grammar in llguidance's dialect of Lark: JSON of a schema, calls of tools, both.

Knows schemas and the texts around calls; knows no tokens. The engine compiles what is written here.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from smedje.chat.calls import CallForm
from smedje.domain.conversations import AnswerFormat, ToolUse

# One space, or a line break and its indentation: a small model that likes white space cannot go on with it for ever.
_LOOSE = {"whitespace_flexible": True, "whitespace_pattern": r"( |\n[ \t]{0,40})"}
# As templates print arguments, so that a call is asked for as calls are trained.
_PRINTED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MOST_CALLS = 16
ANYTHING = r"/(.|\n)*/"


def answer_grammar(answer_format: AnswerFormat | None, tool_use: ToolUse | None, form: CallForm) -> str | None:
    """The grammar of an answer, None where it may be anything.

    With tools an answer is text up to a call (of `answer_format` where there is one), or calls to its end; a text may
    not begin a call and go on differently. Without callable tools a text holds no calls.
    """
    if tool_use is None:
        return None if answer_format is None else _grammar(["start: content", _content(answer_format)])
    if not tool_use.callable:
        return _without_calls(answer_format, form)
    rules = _calls(tool_use, form)
    rest = form.opening.removeprefix(form.trigger)
    if tool_use.required:
        return _grammar([f"start: {_text(form.opening)} calls", *rules])
    if answer_format is not None:
        return _grammar([f"start: content | {_text(form.opening)} calls", _content(answer_format), *rules])
    if form.whole:
        # Anything that does not begin like a call, or a call.
        plain = f"PLAIN: {ANYTHING} & ~/{_pattern(form.trigger)}(.|\\n)*/"
        return _grammar([f"start: PLAIN | {_text(form.opening)} calls", plain, *rules])
    head = f"head[lazy]: TEXT {_text(form.trigger)}"
    return _grammar([f"start: TEXT | head {_text(rest)} calls", head, f"TEXT: {ANYTHING}", *rules])


def _without_calls(answer_format: AnswerFormat | None, form: CallForm) -> str | None:
    if answer_format is not None:
        return _grammar(["start: content", _content(answer_format)])
    if form.whole:
        return None
    return _grammar(["start: PLAIN", f"PLAIN: {ANYTHING} & ~/(.|\\n)*{_pattern(form.trigger)}(.|\\n)*/"])


def _calls(tool_use: ToolUse, form: CallForm) -> list[str]:
    functions = [tool["function"] for tool in tool_use.tools if tool["function"]["name"] in tool_use.callable]
    more = f"more{{0,{MOST_CALLS - 1}}} " if tool_use.parallel and form.between else ""
    rules = [f"calls: call {more}{_text(form.closing)}"]
    if more:
        rules.append(f"more: {_text(form.between)} call")
    rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(functions))))
    for number, function in enumerate(functions):
        name = _text(function["name"] + form.middle)
        schema = _schema(function.get("parameters") or {"type": "object"}, bool(function.get("strict")), _PRINTED)
        rules.append(f"call_{number}: {name} arguments_{number}\narguments_{number}: %json {schema}")
    return rules


def _content(answer_format: AnswerFormat) -> str:
    return f"content: %json {_schema(answer_format.schema, answer_format.strict, _LOOSE)}"


def _schema(schema: Mapping[str, Any], strict: bool, spacing: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": {**spacing, "lenient": not strict}})


def _grammar(rules: Sequence[str]) -> str:
    return "\n".join(["%llguidance {}", *rules, ""])


def _text(text: str) -> str:
    return json.dumps(text) if text else ""


def _pattern(text: str) -> str:
    """A regular expression for exactly this text, as llguidance's Lark reads it."""
    return "".join(c if (c.isascii() and c.isalnum()) or c in "_ " else f"\\x{{{ord(c):x}}}" for c in text)
