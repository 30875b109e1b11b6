"""Tools, calls and answer formats in the body of a chat completion, in OpenAI's shapes."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, ValidationError

from smedje.api.bodies import Body
from smedje.chat.strict_schema import check_strict_schema
from smedje.domain.conversations import AnswerFormat, ToolUse
from smedje.errors import InvalidRequest, UnsupportedField

CHOICES = ("none", "auto", "required")


class JsonSchemaBody(Body):
    """The schema that answers follow. strict: OpenAI's rules hold for it, and every keyword of it for answers."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    shape: Annotated[dict[str, Any], Field(alias="schema", default_factory=dict)]
    strict: bool | None = None


class ResponseFormatBody(Body):
    """What an answer must be: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None


class CalledFunctionBody(Body):
    """The function of a call. arguments: JSON as text."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


class ToolCallBody(Body):
    """A call that an earlier answer made. index: as streams number them; it says nothing here."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunctionBody
    index: int | None = None


class FunctionBody(Body):
    """A function that may be called. parameters: JSON Schema of its arguments, any object where it is left out."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Body):
    """A tool; only functions are offered."""

    wire_name: ClassVar[str] = "tool"

    type: Literal["function"]
    function: FunctionBody


class ToolCallFunctionObject(BaseModel):
    """The function of a call. arguments: JSON as text, a beginning of it when the token limit cut the answer."""

    name: str
    arguments: str


class ToolCallObject(BaseModel):
    """A call of a function."""

    id: str
    type: Literal["function"] = "function"
    function: ToolCallFunctionObject


def to_answer_format(body: ResponseFormatBody | None) -> AnswerFormat | None:
    """The format behind a body, None for text. Raises InvalidRequest naming the field, or the place in the schema."""
    if body is None or body.type == "text":
        return None
    if body.type == "json_object":
        return AnswerFormat(schema={"type": "object"})
    given = body.json_schema
    if given is None:
        raise InvalidRequest(
            "response_format of type json_schema needs json_schema with a name and a schema.",
            code="missing_field",
            param="response_format.json_schema",
        )
    if given.strict:
        param = "response_format.json_schema.schema"
        check_strict_schema(given.shape, subject=f"response_format {given.name!r}", param=param)
    return AnswerFormat(schema=given.shape, strict=bool(given.strict))


def to_tool_use(
    tools: list[dict[str, Any]] | None, choice: str | dict[str, Any] | None, parallel: bool | None
) -> ToolUse | None:
    """What may be called, None without tools. Raises InvalidRequest or UnsupportedField naming the field."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest(
                "tool_choice is only allowed when tools are given.", code="invalid_value", param="tool_choice"
            )
        return None
    functions = [_function(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    names = tuple(function.name for function in functions)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"Two tools have the name {twice!r}.", code="invalid_value", param="tools")
    callable_names, required = _choice(choice, names)
    return ToolUse(
        # As given, to the order of the keys: training examples show tools as they stand in the file.
        tools=tuple(tools),
        callable=callable_names,
        required=required,
        # Whoever names a function wants one call of it.
        parallel=parallel is not False and not (isinstance(choice, dict) and choice.get("type") == "function"),
    )


def _function(tool: Mapping[str, Any], where: str) -> FunctionBody:
    if tool.get("type") == "custom":
        raise UnsupportedField(f"{where} is a custom tool; only functions are offered.", param=f"{where}.type")
    try:
        function = ToolBody.model_validate(tool).function
    except ValidationError as wrong:
        first = wrong.errors()[0]
        place = ".".join([where, *map(str, first["loc"])])
        raise InvalidRequest(f"{place}: {first['msg']}.", code="invalid_value", param=place) from wrong
    if function.strict:
        param = f"{where}.function.parameters"
        check_strict_schema(function.parameters or {}, subject=f"function {function.name!r}", param=param)
    return function


def _choice(choice: str | dict[str, Any] | None, names: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """The functions that may be called, and whether one must be."""
    if choice is None or isinstance(choice, str):
        if choice not in (None, *CHOICES):
            raise InvalidRequest(
                f"tool_choice is {str(choice)[:60]!r}. Use none, auto, required, or name a function.",
                code="invalid_value",
                param="tool_choice",
            )
        return () if choice == "none" else names, choice == "required"
    if choice.get("type") == "function":
        return (_named(choice, names, "tool_choice"),), True
    allowed = choice.get("allowed_tools")
    if choice.get("type") == "allowed_tools" and isinstance(allowed, dict) and isinstance(allowed.get("tools"), list):
        if allowed.get("mode") not in ("auto", "required") or not allowed["tools"]:
            raise InvalidRequest(
                "tool_choice.allowed_tools needs a mode, auto or required, and at least one tool.",
                code="invalid_value",
                param="tool_choice.allowed_tools",
            )
        place = "tool_choice.allowed_tools.tools"
        found = [_named(tool, names, f"{place}[{index}]") for index, tool in enumerate(allowed["tools"])]
        return tuple(dict.fromkeys(found)), allowed["mode"] == "required"
    raise InvalidRequest(
        'tool_choice must look like {"type": "function", "function": {"name": ...}}.',
        code="invalid_value",
        param="tool_choice",
    )


def _named(tool: Any, names: tuple[str, ...], where: str) -> str:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in names:
        raise InvalidRequest(
            f"{where} names the function {str(name)[:64]!r}, which is not among tools.",
            code="invalid_value",
            param=f"{where}.function.name",
        )
    return name
