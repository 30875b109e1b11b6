"""The `smedje` request field of a fine-tuning job: knobs beyond OpenAI's, with their bounds. No torch.

One struct is the whole truth: the API, the command line and the wizard all read names, bounds and meanings here.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from smedje.errors import InvalidRequest

Rate = Annotated[float, Meta(gt=0, le=1)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]


class TrainingOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Knobs of one fine-tuning job; None means: the base model's default.

    learning_rate: absolute peak rate; excludes `learning_rate_multiplier`.
    lora_rank, lora_alpha, lora_dropout: the adapter (Hu et al. 2021, arXiv:2106.09685); scale = alpha / rank.
    max_tokens_per_example: longer examples are refused, never cut.
    validation_fraction: share of the training file held out when there is no validation file; 0 holds out none.
    weight_decay: decoupled, on adapter weights. warmup_ratio: share of the steps with a linear rise.
    max_grad_norm: gradients are clipped to this 2-norm. max_steps: stop after so many optimizer steps.
    """

    learning_rate: Rate | None = None
    lora_rank: Annotated[int, Meta(ge=1, le=256)] | None = None
    lora_alpha: Annotated[float, Meta(gt=0, le=1024)] | None = None
    lora_dropout: Fraction = 0.0
    max_tokens_per_example: Annotated[int, Meta(ge=16)] | None = None
    validation_fraction: Annotated[float, Meta(ge=0, le=0.5)] = 0.2
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    warmup_ratio: Fraction = 0.05
    max_grad_norm: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    max_steps: Annotated[int, Meta(ge=1)] | None = None


def parse_options(given: Mapping[str, Any] | None) -> TrainingOptions:
    """The options of a request.

    Raises InvalidRequest that names the option, the value and what is allowed.
    """
    try:
        return msgspec.convert(dict(given or {}), TrainingOptions)
    except msgspec.ValidationError as problem:
        text = str(problem)
        known = ", ".join(sorted(TrainingOptions.__struct_fields__))
        name = text.split("`$.")[-1].rstrip("`") if "`$." in text else None
        if "unknown field" in text:
            name = text.split("`")[1]
            text = f"Unknown option {name!r} in `smedje`"
        elif name is not None and name in (given or {}):
            text = f"Option {name!r} in `smedje` is {dict(given or {})[name]!r}: {text.split(' - at')[0]}"
        raise InvalidRequest(
            f"{text}. Known options: {known}.",
            code="invalid_option",
            param=f"smedje.{name}" if name else "smedje",
        ) from None


def options_to_dict(options: TrainingOptions) -> dict[str, Any]:
    """The options that differ from their defaults, as JSON values."""
    values = msgspec.to_builtins(options)
    assert isinstance(values, dict)
    return values
