"""A fine-tuning request as given, and every check that needs no row: bounds, names, combinations. No database.

The numbers and words follow OpenAI's where they have them; each refusal names the field, the value and the remedy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smedje.domain.catalog import SUFFIX_PATTERN, TrainingDefaults, TrainingLimits
from smedje.errors import InvalidRequest, UnsupportedField
from smedje.training.from_options import RATED
from smedje.training.options import TrainingOptions, options_to_dict, parse_options

METHODS = ("supervised", "dpo", "classification")
KNOWN_METHODS = (*METHODS, "reinforcement")
METHOD_NAMES = "supervised, dpo or classification"
HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")
METHOD_HYPERPARAMETERS = {
    "supervised": HYPERPARAMETERS,
    "dpo": (*HYPERPARAMETERS, "beta"),
    "classification": HYPERPARAMETERS,
}
LARGEST_BETA = 2.0
LARGEST_SEED = 2_147_483_647
MOST_METADATA = 16
LONGEST_METADATA_KEY, LONGEST_METADATA_VALUE = 64, 512

Number = int | float | str


@dataclass(frozen=True, kw_only=True)
class JobDraft:
    """What a caller asks for. Fields as in domain.jobs.JobRequest, before any check; seed None: to be drawn."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int | None = None
    method: str = "supervised"
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None
    legacy_form: bool = False
    integrations: Sequence[Any] | None = None


def check_method(method: str) -> None:
    """Raises UnsupportedField for methods that OpenAI knows and we do not offer, InvalidRequest for others."""
    if method in METHODS:
        return
    if method in KNOWN_METHODS:
        raise UnsupportedField(
            f"The method {method!r} is not offered. Use {METHOD_NAMES}.",
            code="unsupported_method",
            param="method.type",
        )
    raise InvalidRequest(
        f"There is no method {method[:60]!r}. Use {METHOD_NAMES}.", code="invalid_value", param="method.type"
    )


def check_suffix(suffix: str | None) -> str | None:
    """The suffix, None for an empty one. Raises InvalidRequest for more than 64 characters or other characters."""
    if suffix and not SUFFIX_PATTERN.match(suffix):
        raise InvalidRequest(
            f"The suffix {suffix[:80]!r} is not allowed. Use at most 64 letters, digits, '-', '_' or '.'.",
            code="invalid_suffix",
            param="suffix",
        )
    return suffix or None


def check_seed(seed: int | None) -> None:
    """Raises InvalidRequest outside 0..2147483647."""
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise InvalidRequest(
            f"seed must lie between 0 and {LARGEST_SEED}, found {seed}.", code="invalid_value", param="seed"
        )


def check_metadata(metadata: Mapping[str, str] | None) -> None:
    """Raises InvalidRequest for more than 16 pairs, or a key or value that is too long."""
    if metadata is None:
        return
    if len(metadata) > MOST_METADATA:
        raise InvalidRequest(
            f"metadata has {len(metadata)} pairs; at most {MOST_METADATA} are kept.",
            code="invalid_metadata",
            param="metadata",
        )
    for key, value in metadata.items():
        if not key or len(key) > LONGEST_METADATA_KEY or len(value) > LONGEST_METADATA_VALUE or "\0" in key + value:
            raise InvalidRequest(
                f"The metadata entry {key[:70]!r} is not allowed: keys have 1 to {LONGEST_METADATA_KEY} characters, "
                f"values at most {LONGEST_METADATA_VALUE}, and neither has a NUL.",
                code="invalid_metadata",
                param="metadata",
            )


def check_hyperparameters(
    given: Mapping[str, Any], limits: TrainingLimits, param: str, *, method: str = "supervised"
) -> dict[str, Number]:
    """The hyperparameters that were given, "auto" or in bounds. `param`: the field that holds them, for errors.

    Raises InvalidRequest naming an unknown one (and the known ones), or the value that is out of bounds.
    """
    checked: dict[str, Number] = {}
    for name, value in given.items():
        if name not in METHOD_HYPERPARAMETERS[method]:
            known = ", ".join(METHOD_HYPERPARAMETERS[method])
            raise InvalidRequest(
                f"There is no hyperparameter {name[:60]!r}. Known ones of {method}: {known}. "
                "Further knobs go into the field `smedje`.",
                code="unknown_hyperparameter",
                param=f"{param}.{name[:60]}",
            )
        if value is None:
            continue
        checked[name] = value if value == "auto" else _number(name, value, limits, f"{param}.{name}")
    return checked


def check_options(
    given: Mapping[str, Any],
    hyperparameters: Mapping[str, Number],
    limits: TrainingLimits,
    defaults: TrainingDefaults,
) -> dict[str, Any]:
    """The `smedje` options that differ from their defaults.

    Raises InvalidRequest for an unknown or ill-valued one, one beyond the base model's limits, for a learning rate or
    batch size given twice, and for an optimizer whose rate cannot be guessed.
    """
    options = parse_options(given)
    multiplier = hyperparameters.get("learning_rate_multiplier", "auto")
    if options.learning_rate is not None and multiplier != "auto":
        raise InvalidRequest(
            "smedje.learning_rate and learning_rate_multiplier exclude each other. Give the absolute rate or the "
            f"multiplier of this model's {defaults.learning_rate:g}.",
            code="conflicting_fields",
            param="smedje.learning_rate",
        )
    _check_rate_is_known(options, multiplier, defaults)
    if options.batch_size_multiplier != 1 and hyperparameters.get("batch_size", "auto") != "auto":
        raise InvalidRequest(
            "smedje.batch_size_multiplier and batch_size exclude each other. Give the number of examples a step, or a "
            'multiple of what "auto" gives.',
            code="conflicting_fields",
            param="smedje.batch_size_multiplier",
        )
    rate = options.learning_rate
    if rate is None and not isinstance(multiplier, str):
        rate = defaults.learning_rate * multiplier
    # Plain gradients are far smaller than the even steps of the other optimizers.
    most = 1.0 if options.optimizer == "sgd" else limits.max_learning_rate
    if rate is not None and not limits.min_learning_rate <= rate <= most:
        raise InvalidRequest(
            f"The learning rate would be {rate:g}; this model takes {limits.min_learning_rate:g} to {most:g} "
            f"(a multiplier of 1 stands for {defaults.learning_rate:g}).",
            code="invalid_value",
            param="smedje.learning_rate" if options.learning_rate is not None else "learning_rate_multiplier",
        )
    for name, value, most in (
        ("lora_rank", options.lora_rank, limits.max_lora_rank),
        ("max_tokens_per_example", options.max_tokens_per_example, limits.max_tokens_per_example),
    ):
        if value is not None and value > most:
            raise InvalidRequest(
                f"smedje.{name} is {value}; this base model takes at most {most}.",
                code="invalid_option",
                param=f"smedje.{name}",
            )
    return options_to_dict(options)


def check_method_options(given: Mapping[str, Any], *, method: str, validation_file: bool) -> None:
    """Raises InvalidRequest for options that would do nothing: a loss beside dpo, a watch over no validation rows."""
    options = parse_options(given)
    if method == "dpo" and options.loss != "cross_entropy":
        raise InvalidRequest(
            f"smedje.loss {options.loss!r} has no meaning beside the method dpo, which has a loss of its own.",
            code="conflicting_fields",
            param="smedje.loss",
        )
    if method == "dpo" and options.neftune_alpha is not None:
        raise InvalidRequest(
            "smedje.neftune_alpha is not offered beside the method dpo, whose reference must see the same inputs.",
            code="conflicting_fields",
            param="smedje.neftune_alpha",
        )
    if method != "classification" and options.class_weights is not None:
        raise InvalidRequest(
            f"smedje.class_weights has no meaning beside the method {method}. It belongs to classification.",
            code="conflicting_fields",
            param="smedje.class_weights",
        )
    if method != "supervised" and options.tuning == "full":
        raise InvalidRequest(
            f"smedje.tuning 'full' is not offered beside the method {method}, which trains an adapter.",
            code="conflicting_fields",
            param="smedje.tuning",
        )
    watches = options.checkpoint == "best" or options.early_stopping_patience is not None
    if options.validation_fraction == 0 and not validation_file and (watches or options.eval_every_steps):
        raise InvalidRequest(
            "Early stopping, the best checkpoint and eval_every_steps need validation rows. Give a validation_file, or "
            "a smedje.validation_fraction above 0.",
            code="validation_needed",
            param="smedje.validation_fraction",
        )


def _check_rate_is_known(options: TrainingOptions, multiplier: Number, defaults: TrainingDefaults) -> None:
    rated = options.optimizer in RATED and options.tuning == "lora"
    if not rated and options.learning_rate is None and multiplier == "auto":
        what = options.optimizer if options.tuning == "lora" else "tuning all weights (usually 10 to 50 times less)"
        raise InvalidRequest(
            f"This model's learning rate of {defaults.learning_rate:g} is for LoRA with adamw and says nothing about "
            f"{what}. Give smedje.learning_rate, or a learning_rate_multiplier.",
            code="missing_field",
            param="smedje.learning_rate",
        )


def _number(name: str, value: Any, limits: TrainingLimits, param: str) -> Number:
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if name == "learning_rate_multiplier":
        if number and 0 < value < float("inf"):
            return float(value)
        allowed = 'a number above 0, or "auto"'
    elif name == "beta":
        if number and 0 < value <= LARGEST_BETA:
            return float(value)
        allowed = f'a number above 0 and at most {LARGEST_BETA:g}, or "auto"'
    else:
        most = limits.max_epochs if name == "n_epochs" else limits.max_batch_size
        if number and value == int(value) and 1 <= value <= most:
            return int(value)
        allowed = f'a whole number from 1 to {most}, or "auto"'
    raise InvalidRequest(f"{name} is {str(value)[:60]!r}; it must be {allowed}.", code="invalid_value", param=param)
