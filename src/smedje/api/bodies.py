"""What wire bodies have in common: unknown fields are refused by name, and the list of fields that are ignored.

`IGNORED_FIELDS` is the whole truth about what is accepted without effect; nothing else may be.
"""

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from smedje.errors import UnsupportedField

# Accepted without effect, because they change nothing in an answer: who the end user is, hints for caches, and labels
# of stored completions, of which there are none here.
IGNORED_FIELDS: dict[str, frozenset[str]] = {
    "chat": frozenset(
        {
            "user",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "metadata",
        }
    ),
    "completion": frozenset({"user"}),
    # The billing tier of Azure's training; there is one way to train here.
    "job": frozenset({"trainingType"}),
}

# Understood and not offered. Null, and the values listed, mean the same as leaving the field out.
UNSUPPORTED_FIELDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "chat": {
        "functions": ([],),
        "function_call": ("none", "auto"),
        "store": (False,),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "prediction": (),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
        "moderation": (),
    },
    "completion": {
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
    },
}


T = TypeVar("T")


def _is_none(value: object) -> bool:
    return value is None


# For answers: a field that OpenAI calls optional but not nullable is left out rather than sent as null.
Absent = Annotated[T, Field(exclude_if=_is_none)]


class Body(BaseModel):
    """A JSON request body. `wire_name` finds its lists above."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    wire_name: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, given: Any) -> Any:
        """The body without ignored fields. Raises UnsupportedField for what is understood and not offered."""
        if not isinstance(given, dict):
            return given
        ignored = IGNORED_FIELDS.get(cls.wire_name, frozenset())
        neutral = UNSUPPORTED_FIELDS.get(cls.wire_name, {})
        kept = {}
        for name, value in given.items():
            if name in neutral:
                if value is not None and value not in neutral[name]:
                    raise UnsupportedField(
                        f"The field {name!r} is not offered by this server. Leave it out.", param=name
                    )
            elif name not in ignored:
                kept[name] = value
        return kept
