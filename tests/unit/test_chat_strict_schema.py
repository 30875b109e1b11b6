"""OpenAI's rules for strict schemas: what passes, and which place each refusal names."""

from typing import Any

import pytest

from smedje.chat.strict_schema import check_strict_schema
from smedje.errors import InvalidRequest


def check(schema: dict[str, Any]) -> None:
    """Check as a response format does."""
    check_strict_schema(schema, subject="response_format 'x'", param="schema")


def strict(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A strict object."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


DEEP: dict[str, Any] = {"type": "string"}
for _ in range(11):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    "schema",
    [
        strict({}),
        strict({"a": {"type": "string"}, "b": {"type": ["integer", "null"], "description": "d", "title": "B"}}),
        strict({"a": {"type": "array", "items": strict({"b": {"enum": ["x", 1, None]}}), "minItems": 1}}),
        strict({"a": {"$ref": "#/$defs/n"}}, **{"$defs": {"n": strict({"next": {"anyOf": [{"$ref": "#"}]}})}}),
        strict({"a": {"type": "string", "format": "date", "pattern": "^2", "maxLength": 10}}),
        strict({"a": {"const": 3, "default": 3}}),
    ],
)
def test_schemas_that_openai_takes_pass(schema: dict[str, Any]) -> None:
    """Objects with everything required, types, lists of types, enums, references, bounds and words for people."""
    check(schema)


@pytest.mark.parametrize(
    ("schema", "param", "words"),
    [
        ({"type": "array", "items": {"type": "string"}}, "schema", "root must be"),
        ({"anyOf": [strict({})]}, "schema", "found anyOf"),
        ({"type": "object", "properties": {}}, "schema.additionalProperties", "to be false"),
        (
            {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": False},
            "schema.required",
            "including every key",
        ),
        (strict({"a": {"type": "null"}}) | {"required": []}, "schema.required", "Missing 'a'"),
        (strict({}) | {"required": ["z"]}, "schema.required", "Extra required key 'z'"),
        (strict({"a": {"type": "object"}}), "schema.properties.a.additionalProperties", "to be false"),
        (
            strict({"a": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}),
            "schema.properties.a.uniqueItems",
            "'uniqueItems' is not permitted",
        ),
        (strict({"a": {"oneOf": []}}), "schema.properties.a.oneOf", "not permitted"),
        (strict({"a": {"allOf": []}}), "schema.properties.a.allOf", "not permitted"),
        (strict({"a": {"not": {}}}), "schema.properties.a.not", "not permitted"),
        (strict({"a": {"type": "array"}}), "schema.properties.a.items", "missing items"),
        (strict({"a": {}}), "schema.properties.a", "must have a 'type' key"),
        (strict({"a": {"type": "text"}}), "schema.properties.a.type", "'text' is not a type"),
        (strict({"a": {"type": [{}]}}), "schema.properties.a.type", "is not a type"),
        (strict({"a": {"enum": []}}), "schema.properties.a.enum", "at least one value"),
        (strict({"a": {"enum": list(range(1001))}}), "schema.properties.a.enum", "1000"),
        (strict({"a": {"type": "string", "format": "colour"}}), "schema.properties.a.format", "colour"),
        (strict({"a": {"$ref": "#/$defs/none"}}), "schema.properties.a.$ref", "points to nothing"),
        (strict({"a": {"$ref": "https://x/y"}}), "schema.properties.a.$ref", "into this schema"),
        (strict({"a": True}), "schema.properties.a", "must be an object"),
        (strict({"a": {"anyOf": [{"type": "null"}, {"if": {}}]}}), "schema.properties.a.anyOf.1.if", "not permitted"),
        (strict({"a": DEEP}), f"schema.properties.a{'.items' * 10}", "10 levels"),
        (strict({f"p{n}": {"type": "null"} for n in range(5001)}), "schema", "5000"),
    ],
)
def test_each_broken_rule_names_its_place(schema: dict[str, Any], param: str, words: str) -> None:
    """The error's param is the path of the fault, its message OpenAI's words for it."""
    with pytest.raises(InvalidRequest) as caught:
        check(schema)
    assert (caught.value.code, caught.value.param) == ("invalid_schema", param)
    assert words in caught.value.message
    assert caught.value.message.startswith("Invalid schema for response_format 'x'")
