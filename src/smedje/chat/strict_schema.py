"""OpenAI's rules for schemas with `strict: true`: which keywords they may have, and what every object must say.

Knows JSON Schema as plain values; knows no grammars. Rules and words follow OpenAI's answers to schemas that it refuses
(https://platform.openai.com/docs/guides/structured-outputs, "Supported schemas").
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from smedje.errors import InvalidRequest

CODE = "invalid_schema"
TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
# They say something to people and nothing about what is valid.
ANNOTATIONS = frozenset({"title", "description", "default", "examples", "$comment", "$schema", "$id", "deprecated"})
KEYWORDS = ANNOTATIONS | {
    *("type", "enum", "const", "anyOf", "$ref", "$defs", "definitions"),
    *("properties", "required", "additionalProperties"),
    *("items", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
MOST_PROPERTIES = 5000
MOST_LEVELS = 10
MOST_VALUES = 1000
MOST_CHARACTERS = 120_000

Path = tuple[str | int, ...]


def check_strict_schema(schema: Mapping[str, Any], *, subject: str, param: str) -> None:
    """Raise InvalidRequest (`invalid_schema`) for the first rule that the schema breaks.

    subject: whose schema it is, for the message. param: where it stands; the place in the schema is added to it.
    """
    _Check(schema, subject, param).run()


@dataclass
class _Check:
    """One walk through a schema; counts what is limited over the whole of it."""

    schema: Mapping[str, Any]
    subject: str
    param: str
    properties: int = 0
    values: int = 0
    characters: int = 0
    waiting: list[tuple[Any, Path, int]] = field(default_factory=list)

    def run(self) -> None:
        if self.schema.get("type") != "object":
            found = "anyOf" if "anyOf" in self.schema else f"type: {self.schema.get('type')!r}"
            self.refuse((), f"the root must be of 'type: \"object\"', found {found}")
        self.waiting = [(self.schema, (), 0)]
        while self.waiting:
            self.check(*self.waiting.pop())

    def check(self, schema: Any, path: Path, level: int) -> None:
        if not isinstance(schema, Mapping):
            self.refuse(path, f"a schema must be an object, found {type(schema).__name__}")
        if level > MOST_LEVELS:
            self.refuse(path, f"objects and arrays may be nested {MOST_LEVELS} levels deep")
        for name in schema:
            if name not in KEYWORDS:
                self.refuse(path, f"{name[:80]!r} is not permitted", keyword=name[:80])
        if not schema.keys() & {"type", "anyOf", "$ref", "enum", "const"}:
            self.refuse(path, "schema must have a 'type' key")
        self.check_values(schema, path)
        if "$ref" in schema:
            self.check_reference(schema["$ref"], path)
        kinds = schema.get("type", ())
        kinds = [kinds] if isinstance(kinds, str) else list(kinds) if isinstance(kinds, list | tuple) else [kinds]
        for kind in kinds:
            if not isinstance(kind, str) or kind not in TYPES:
                self.refuse(path, f"{kind!r} is not a type", keyword="type")
        if "object" in kinds or "properties" in schema:
            self.check_object(schema, path)
        if "array" in kinds and "items" not in schema:
            self.refuse(path, "array schema missing items", keyword="items")
        self.waiting += [(part, place, level + deeper) for part, place, deeper in _parts(schema, path)]

    def check_object(self, schema: Mapping[str, Any], path: Path) -> None:
        properties, required = schema.get("properties", {}), schema.get("required")
        if not isinstance(properties, Mapping):
            self.refuse(path, "'properties' must be an object", keyword="properties")
        self.properties += len(properties)
        self.characters += sum(map(len, properties))
        if self.properties > MOST_PROPERTIES or self.characters > MOST_CHARACTERS:
            self.refuse(path, f"at most {MOST_PROPERTIES} properties with {MOST_CHARACTERS} characters are permitted")
        if schema.get("additionalProperties") is not False:
            self.refuse(
                path,
                "'additionalProperties' is required to be supplied and to be false",
                keyword="additionalProperties",
            )
        every = "'required' is required to be supplied and to be an array including every key in properties"
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            if properties or required is not None:
                self.refuse(path, every, keyword="required")
            return
        missing = next((name for name in properties if name not in required), None)
        if missing is not None:
            self.refuse(path, f"{every}. Missing {missing!r}", keyword="required")
        extra = next((name for name in required if name not in properties), None)
        if extra is not None:
            self.refuse(path, f"Extra required key {extra!r} supplied", keyword="required")

    def check_values(self, schema: Mapping[str, Any], path: Path) -> None:
        values = schema.get("enum", [])
        if not isinstance(values, list) or ("enum" in schema and not values):
            self.refuse(path, "'enum' must be an array with at least one value", keyword="enum")
        self.values += len(values)
        self.characters += sum(len(value) for value in values if isinstance(value, str))
        if self.values > MOST_VALUES or self.characters > MOST_CHARACTERS:
            self.refuse(path, f"at most {MOST_VALUES} enum values are permitted", keyword="enum")
        form = schema.get("format")
        if form is not None and (not isinstance(form, str) or form not in FORMATS):
            self.refuse(path, f"format {form!r} is not permitted", keyword="format")

    def check_reference(self, reference: Any, path: Path) -> None:
        if not isinstance(reference, str) or not reference.startswith("#"):
            self.refuse(path, "a '$ref' must point into this schema, as in '#/$defs/name'", keyword="$ref")
        found: Any = self.schema
        for name in [part.replace("~1", "/").replace("~0", "~") for part in reference[1:].split("/")[1:]]:
            if not isinstance(found, Mapping) or name not in found:
                self.refuse(path, f"reference {reference[:80]!r} points to nothing", keyword="$ref")
            found = found[name]

    def refuse(self, path: Path, reason: str, *, keyword: str = "") -> NoReturn:
        place = ".".join(map(str, (*path, *([keyword] if keyword else []))))
        raise InvalidRequest(
            f"Invalid schema for {self.subject}: In context=({', '.join(map(repr, path))}), {reason}.",
            code=CODE,
            param=f"{self.param}.{place}" if place else self.param,
        )


def _parts(schema: Mapping[str, Any], path: Path) -> Iterator[tuple[Any, Path, int]]:
    """Schemas inside a schema, where they stand, and how many levels deeper."""
    for group in ("$defs", "definitions", "properties"):
        inside = schema.get(group)
        if isinstance(inside, Mapping):
            yield from ((part, (*path, group, name), int(group == "properties")) for name, part in inside.items())
    if "items" in schema:
        yield schema["items"], (*path, "items"), 1
    options = schema.get("anyOf")
    if isinstance(options, list):
        yield from ((part, (*path, "anyOf", number), 0) for number, part in enumerate(options))
