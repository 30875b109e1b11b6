"""The `smedje` request field of a fine-tuning job: knobs beyond OpenAI's, with their bounds. No torch.

These structs are the whole truth: the API, the command line and the wizard all read names, bounds and meanings here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from smedje.errors import InvalidRequest
from smedje.training.spec import OptimizerKind, ScheduleKind

Weight = Annotated[float, Meta(gt=0, le=1000)]
Rate = Annotated[float, Meta(gt=0, le=1)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Layer = Annotated[int, Meta(ge=0, le=999)]
Target = Annotated[str, Meta(min_length=1, max_length=64)]

# Which optimizers an option belongs to; with another one it is refused, because it would do nothing.
BELONGS_TO: dict[str, tuple[str, ...]] = {
    "beta1": ("adamw", "adam", "lion"),
    "beta2": ("adamw", "adam", "lion"),
    "eps": ("adamw", "adam"),
    "momentum": ("sgd", "muon"),
}


class AdapterOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is trained: an adapter (Hu et al. 2021, arXiv:2106.09685) with its knobs, or all weights.

    tuning: `lora` or `full`; with `full` the other knobs here have no meaning and the rate must be given.
    lora_rank, lora_alpha, lora_dropout: size, scale and dropout; None: the base model's default. rslora: scale
    alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski 2023, arXiv:2312.03732). lora_targets: last names of the
    linears to adapt, None for all. lora_layers: numbers of the layers to adapt, or -n for the last n; None for all.
    dora: also train a magnitude for each output row (Liu et al. 2024, arXiv:2402.09353).
    precision: what the base model under the adapter is multiplied in. fp32: exact, and the default. bf16: its products
    in half the time, rounded to 8 bits, on processors that have it. auto: bf16 there, else fp32.
    """

    tuning: Literal["lora", "full"] = "lora"
    lora_rank: Annotated[int, Meta(ge=1, le=256)] | None = None
    lora_alpha: Annotated[float, Meta(gt=0, le=1024)] | None = None
    lora_dropout: Fraction = 0.0
    rslora: bool | None = None
    lora_targets: Annotated[tuple[Target, ...], Meta(min_length=1, max_length=16)] | None = None
    lora_layers: (
        Annotated[tuple[Layer, ...], Meta(min_length=1, max_length=256)] | Annotated[int, Meta(ge=-999, le=-1)] | None
    ) = None
    precision: Literal["auto", "fp32", "bf16"] | None = None
    dora: bool | None = None


class UpdateOptions(AdapterOptions, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Knobs of the loss and of how a gradient becomes a step.

    learning_rate: absolute peak rate; excludes `learning_rate_multiplier`. loss: of a labelled token; label_smoothing
    is the share of `label_smoothing`, focal_gamma the exponent of `focal`. class_weights: of classification, a weight
    by label (1 for the others), or "balanced" for the same total of each label. optimizer: with another than adamw and
    adam the rate must be given, because the base model's own is for them. beta1, beta2, eps, momentum: None for the
    optimizer's usual value. weight_decay: decoupled in adamw, lion, adafactor and muon; added to the gradient in adam
    and sgd. max_grad_norm: gradients are clipped to this 2-norm. scheduler: how the rate falls after the warm-up;
    warmup_ratio: share of the steps that rise, warmup_steps: their number instead. scheduler_power: of `polynomial`.
    neftune_alpha: size of the noise on embedded tokens while training (Jain et al. 2023, arXiv:2310.05914).
    """

    learning_rate: Rate | None = None
    loss: Literal["cross_entropy", "label_smoothing", "focal"] = "cross_entropy"
    label_smoothing: Annotated[float, Meta(gt=0, lt=1)] | None = None
    focal_gamma: Annotated[float, Meta(gt=0, le=10)] | None = None
    class_weights: Annotated[dict[str, Weight], Meta(min_length=1, max_length=1000)] | Literal["balanced"] | None = None
    optimizer: OptimizerKind = "adamw"
    beta1: Fraction | None = None
    beta2: Fraction | None = None
    eps: Annotated[float, Meta(gt=0, le=0.1)] | None = None
    momentum: Fraction | None = None
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    scheduler: ScheduleKind = "cosine"
    scheduler_power: Annotated[float, Meta(gt=0, le=10)] | None = None
    warmup_ratio: Fraction = 0.05
    warmup_steps: Annotated[int, Meta(ge=0)] | None = None
    neftune_alpha: Annotated[float, Meta(gt=0, le=100)] | None = None


class TrainingOptions(UpdateOptions, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Knobs of one fine-tuning job; None means: the base model's default.

    max_tokens_per_example: longer examples are refused, never cut. validation_fraction: share of the training file
    held out when there is no validation file; 0 holds out none. max_steps: stop after so many optimizer steps.
    batch_size_multiplier: multiplies the batch size that "auto" gives; excludes a batch size.
    gradient_accumulation_steps: batches whose gradients are added up for one optimizer step. micro_batch_tokens: most
    tokens computed at once; smaller takes less memory and more time and changes no result beyond rounding.
    share_prefixes: what examples of a batch begin with alike is computed once; changes no result beyond rounding.
    recompute: compute each layer again in the backward pass in place of keeping it; the last way to save memory.
    eval_every_steps: full validation every so many steps, beside the one at each epoch's end. early_stopping_patience:
    stop after so many full validations in a row whose loss is not more than early_stopping_threshold below the best.
    checkpoint: whether the last or the best checkpoint becomes the fine-tuned model. checkpoint_every_epochs: epochs
    between checkpoints.
    """

    max_tokens_per_example: Annotated[int, Meta(ge=16)] | None = None
    validation_fraction: Annotated[float, Meta(ge=0, le=0.5)] = 0.2
    max_steps: Annotated[int, Meta(ge=1)] | None = None
    batch_size_multiplier: Annotated[float, Meta(gt=0, le=64)] = 1.0
    gradient_accumulation_steps: Annotated[int, Meta(ge=1, le=256)] = 1
    micro_batch_tokens: Annotated[int, Meta(ge=16, le=131_072)] | None = None
    share_prefixes: bool = True
    recompute: bool = False
    eval_every_steps: Annotated[int, Meta(ge=1)] | None = None
    early_stopping_patience: Annotated[int, Meta(ge=1, le=1000)] | None = None
    early_stopping_threshold: Annotated[float, Meta(ge=0, le=100)] = 0.0
    checkpoint: Literal["last", "best"] = "last"
    checkpoint_every_epochs: Annotated[int, Meta(ge=1, le=50)] = 1


def parse_options(given: Mapping[str, Any] | None) -> TrainingOptions:
    """The options of a request.

    Raises InvalidRequest that names the option, the value and what is allowed, and for options that do nothing beside
    each other.
    """
    try:
        options = msgspec.convert(dict(given or {}), TrainingOptions)
    except msgspec.ValidationError as problem:
        raise _refusal(str(problem), dict(given or {})) from None
    _check_combinations(options)
    return options


def options_to_dict(options: TrainingOptions) -> dict[str, Any]:
    """The options that differ from their defaults, as JSON values."""
    values = msgspec.to_builtins(options)
    assert isinstance(values, dict)
    return values


def _refusal(text: str, given: Mapping[str, Any]) -> InvalidRequest:
    known = ", ".join(sorted(TrainingOptions.__struct_fields__))
    name = text.split("`$.")[-1].rstrip("`").split("[")[0] if "`$." in text else None
    if "unknown field" in text:
        name = text.split("`")[1]
        text = f"Unknown option {name!r} in `smedje`"
    elif name is not None and name in given:
        text = f"Option {name!r} in `smedje` is {given[name]!r}: {text.split(' - at')[0]}"
    return InvalidRequest(
        f"{text}. Known options: {known}.", code="invalid_option", param=f"smedje.{name}" if name else "smedje"
    )


def _check_combinations(options: TrainingOptions) -> None:
    """Raises InvalidRequest for an option that would be ignored beside another."""
    for name, owners in BELONGS_TO.items():
        if getattr(options, name) is not None and options.optimizer not in owners:
            raise _ignored(name, f"optimizer {options.optimizer!r}", f"It belongs to {', '.join(owners)}.")
    if options.label_smoothing is not None and options.loss != "label_smoothing":
        raise _ignored("label_smoothing", f"loss {options.loss!r}", "Give loss: label_smoothing with it.")
    if options.focal_gamma is not None and options.loss != "focal":
        raise _ignored("focal_gamma", f"loss {options.loss!r}", "Give loss: focal with it.")
    if options.scheduler_power is not None and options.scheduler != "polynomial":
        raise _ignored("scheduler_power", f"scheduler {options.scheduler!r}", "Give scheduler: polynomial with it.")
    if options.warmup_steps is not None and options.warmup_ratio != 0.05:
        raise _ignored("warmup_ratio", "warmup_steps", "Give one of the two.")
    if options.tuning == "full":
        for name in AdapterOptions.__struct_fields__:
            if name != "tuning" and getattr(options, name):
                raise _ignored(name, "tuning 'full'", "It belongs to the adapter, and there is none.")
        if options.optimizer == "muon":
            raise _ignored("tuning", "optimizer 'muon'", "Muon updates matrices, and a model has other weights too.")
    if options.recompute and options.lora_dropout:
        raise _ignored("recompute", "lora_dropout", "A layer that is computed again would draw another mask.")
    if options.dora and options.optimizer == "muon":
        raise _ignored("dora", "optimizer 'muon'", "Muon updates matrices, and DoRA's magnitudes are none.")
    if options.early_stopping_threshold and options.early_stopping_patience is None:
        raise _ignored("early_stopping_threshold", "no early_stopping_patience", "Give a patience with it.")


def _ignored(name: str, beside: str, remedy: str) -> InvalidRequest:
    return InvalidRequest(
        f"smedje.{name} has no meaning beside {beside}. {remedy}", code="conflicting_fields", param=f"smedje.{name}"
    )
