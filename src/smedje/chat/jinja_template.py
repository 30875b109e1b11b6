"""A base model's chat template as a compiled, sandboxed Jinja program. Knows text; knows nothing of token ids.

Chat templates come with downloaded models, so they are untrusted programs: they run in Jinja's immutable sandbox with
the environment that `transformers` gives them (block trimming, loop controls, `raise_exception`, `strftime_now`, a
plain `tojson`), so that the text is the same to the character (transformers/utils/chat_template_utils.py).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from smedje.chat.calls import CallForm, find_form
from smedje.errors import InvalidRequest

_PROBE = "smedjeprobe"


class _GenerationTag(jinja2.ext.Extension):
    """Accepts `{% generation %}...{% endgeneration %}` and renders its body: we find the answer ourselves."""

    tags = {"generation"}  # noqa: RUF012 (Jinja reads the class attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled chat template and what it was found to understand.

    source: the Jinja text. variables: `bos_token`, `eos_token` and their like.
    knows_system: a leading system message reaches the text (Gemma 2 raises, the first Phi-3 template drops it).
    knows_developer: the source mentions the developer role. knows_tools: a tool's name reaches the text.
    call_form: how it writes an assistant's calls of tools, None where it does not or where that could not be found.
    end_of_turn: what stands right after an answer in the middle of a conversation, or "" when that could not be found.
    """

    source: str
    variables: Mapping[str, str]
    knows_system: bool
    knows_developer: bool
    knows_tools: bool
    call_form: CallForm | None
    end_of_turn: str
    program: jinja2.Template = field(repr=False, compare=False)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> str:
        """The text of `messages`. Raises InvalidRequest (`chat_template_error`) where the template refuses them."""
        try:
            return _render(self.program, self.variables, messages, tools, add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InvalidRequest(
                f"The chat template of this base model does not accept this conversation: {error}. "
                "Change the order or the roles of the messages to what the model was made for.",
                code="chat_template_error",
                param="messages",
            ) from error


def compile_chat_template(source: str, *, variables: Mapping[str, str], today: date | None = None) -> ChatTemplate:
    """Compile `source` and try what it understands.

    variables: the special tokens that templates may name. today: the date that `strftime_now` tells; None reads the
    clock, which makes a template that prints the date (Llama 3.2) give other tokens tomorrow.
    Raises InvalidRequest (`chat_template_invalid`) when the source is not a Jinja template.
    """
    try:
        program = _environment(today).from_string(source)
    except jinja2.TemplateError as error:
        raise InvalidRequest(
            f"The chat template of this base model cannot be read: {error}. Pull the model again or mend its template.",
            code="chat_template_invalid",
        ) from error
    end_of_turn = _end_of_turn(program, variables)
    return ChatTemplate(
        source=source,
        variables=dict(variables),
        knows_system=_knows_system(program, variables),
        knows_developer="developer" in source,
        knows_tools=_knows_tools(program, variables),
        call_form=_call_form(program, variables, end_of_turn),
        end_of_turn=end_of_turn,
        program=program,
    )


def _environment(today: date | None) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    def strftime_now(form: str) -> str:
        moment = datetime.now() if today is None else datetime.combine(today, time())
        return moment.strftime(form)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _render(
    program: jinja2.Template,
    variables: Mapping[str, str],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
) -> str:
    # Templates test `if tools`, but some also `tools is none`: transformers passes None, never an empty list.
    given = list(tools) if tools else None
    return program.render(
        **variables, messages=list(messages), tools=given, documents=None, add_generation_prompt=add_generation_prompt
    )


def _try_render(
    program: jinja2.Template,
    variables: Mapping[str, str],
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    *,
    asking: bool = True,
) -> str:
    try:
        return _render(program, variables, messages, tools, asking)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError):
        return ""


def _knows_system(program: jinja2.Template, variables: Mapping[str, str]) -> bool:
    messages = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "a"}]
    return _PROBE in _try_render(program, variables, messages)


def _knows_tools(program: jinja2.Template, variables: Mapping[str, str]) -> bool:
    function = {"name": _PROBE, "description": "a", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    return _PROBE in _try_render(program, variables, [{"role": "user", "content": "a"}], tools)


def _call_form(program: jinja2.Template, variables: Mapping[str, str], end_of_turn: str) -> CallForm | None:
    # Mistral's templates insist on ids of nine characters.
    probes: list[tuple[str, dict[str, Any]]] = [(_PROBE, {"first": "value"}), (_PROBE[::-1], {"second": 2})]
    calls = [
        {"id": f"abcdefgh{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(probes)
    ]
    question = {"role": "user", "content": "a"}
    prompt = _try_render(program, variables, [question])

    def answered(called: list[dict[str, Any]]) -> str:
        answers = [{"role": "tool", "content": "b", "tool_call_id": call["id"], "name": "c"} for call in called]
        turn = {"role": "assistant", "content": "", "tool_calls": called}
        whole = _try_render(program, variables, [question, turn, *answers], asking=False)
        return whole[len(prompt) :] if whole.startswith(prompt) else ""

    return find_form(answered(calls[:1]), answered(calls), end_of_turn, probes) if prompt else None


def _end_of_turn(program: jinja2.Template, variables: Mapping[str, str]) -> str:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": _PROBE},
        {"role": "user", "content": "b"},
    ]
    _, _, after = _try_render(program, variables, messages).partition(_PROBE)
    return after.strip()
