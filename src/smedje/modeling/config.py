"""A decoder's numbers, read from a model folder's config.json, and the names of its linears. No torch here.

Knows which Hugging Face architectures our own decoder computes exactly and how their settings are spelled, old and new.
Refuses to know tensors, files other than config.json, and adapters.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from smedje.errors import InvalidRequest, UnsupportedField

OWNED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
OWNED_ROPES = ("default", "linear", "llama3", "longrope")

RopeKind = Literal["default", "linear", "llama3", "longrope"]
RopeRegime = Literal["short", "long"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions. `rotary_size`: how many values of a head turn. `scaling`: factor on cos and sin (longrope)."""

    kind: RopeKind
    theta: float
    rotary_size: int
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    scaling: float = 1.0


@dataclass(frozen=True)
class DecoderShape:
    """What callers of any decoder need: sizes, longest position, each layer's attention window (None: unlimited)."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    max_positions: int
    windows: tuple[int | None, ...]


@dataclass(frozen=True)
class DecoderConfig:
    """Everything our own decoder computes with. `fused_names`: the files hold qkv_proj and gate_up_proj (Phi-3)."""

    architecture: str
    shape: DecoderShape
    intermediate_size: int
    norm_eps: float
    tie_embeddings: bool
    rope: RopeConfig
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    fused_names: bool = False


class Site(NamedTuple):
    """One linear as the decoder computes it. `linear`: qkv, o, gate_up or down in ours; in a fallback its own path."""

    layer: int
    linear: str


@dataclass(frozen=True)
class Slot:
    """One Hugging Face linear as rows [start, stop) of a site's output. `name`: module path; `inputs`: input size."""

    name: str
    site: Site
    start: int
    stop: int
    inputs: int


def read_raw_config(folder: Path) -> dict[str, Any]:
    """Parse config.json of a model folder. InvalidRequest when it is missing or no JSON object."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InvalidRequest(f"{path} is missing: this is no model folder.", code="invalid_base_model") from None
    except ValueError as error:
        raise InvalidRequest(f"{path} is no valid JSON: {error}.", code="invalid_base_model") from None
    if not isinstance(raw, dict):
        raise InvalidRequest(f"{path} must hold one JSON object.", code="invalid_base_model")
    return raw


def read_decoder_config(folder: Path) -> DecoderConfig:
    """Read config.json into our terms, with the same defaults as transformers 5.

    Raises InvalidRequest where a needed field is missing, UnsupportedField for an architecture or setting that our own
    decoder does not compute (`why_not_owned` tells beforehand).
    """
    raw = read_raw_config(folder)
    reason = why_not_owned(raw)
    if reason is not None:
        raise UnsupportedField(f"{folder / 'config.json'}: {reason}.", code="unsupported_architecture")
    architecture = _architecture(raw)
    head_size = _head_size(raw, architecture)
    heads = _integer(raw, "num_attention_heads")
    attention_bias = bool(raw.get("attention_bias", False)) and architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM")
    shape = DecoderShape(
        vocab_size=_integer(raw, "vocab_size"),
        hidden_size=_integer(raw, "hidden_size"),
        layers=_integer(raw, "num_hidden_layers"),
        heads=heads,
        kv_heads=_integer(raw, "num_key_value_heads", default=heads),
        head_size=head_size,
        max_positions=_integer(raw, "max_position_embeddings"),
        windows=_windows(raw, architecture),
    )
    return DecoderConfig(
        architecture=architecture,
        shape=shape,
        intermediate_size=_integer(raw, "intermediate_size"),
        norm_eps=float(raw.get("rms_norm_eps", 1e-5 if architecture == "Phi3ForCausalLM" else 1e-6)),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        rope=_rope(raw, head_size),
        qkv_bias=attention_bias or architecture == "Qwen2ForCausalLM",
        o_bias=attention_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)) and architecture == "LlamaForCausalLM",
        qk_norm=architecture == "Qwen3ForCausalLM",
        fused_names=architecture == "Phi3ForCausalLM",
    )


def why_not_owned(raw: Mapping[str, Any]) -> str | None:
    """None when our own decoder computes this config.json; otherwise the reason, for a person."""
    architecture = _architecture(raw)
    if architecture not in OWNED_ARCHITECTURES:
        return f"architecture {architecture!r} is not one of {', '.join(OWNED_ARCHITECTURES)}"
    kind = _rope_kind(_rope_fields(raw))
    if kind not in OWNED_ROPES:
        return f"rope type {kind!r} is not one of {', '.join(OWNED_ROPES)}"
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        return f"hidden_act {activation!r} is not 'silu'"
    if raw.get("quantization_config"):
        return "the weights are quantised (quantization_config); pull the model in float16, bfloat16 or float32"
    return None


def rope_regime(rope: RopeConfig, context_length: int | None) -> RopeRegime:
    """Which of longrope's two factor sets a job or deployment of this context length computes with.

    transformers picks per forward call, by the largest position in the batch: one long document turns the short
    factors of all others off, and a generation that passes the boundary mixes keys of both kinds in its cache. Here
    the choice is made once, from the longest sequence the job or deployment admits (as vLLM does), so that training
    and serving agree and a document's loss does not depend on its neighbours. None means the original context.
    """
    if rope.kind != "longrope" or context_length is None:
        return "short"
    return "long" if context_length > rope.original_positions else "short"


def linear_slots(config: DecoderConfig) -> tuple[Slot, ...]:
    """Every linear of every layer under its Hugging Face name, in the files' order."""
    shape = config.shape
    q, kv, inner = shape.heads * shape.head_size, shape.kv_heads * shape.head_size, config.intermediate_size
    parts: tuple[tuple[str, str, int, int, int], ...]
    if config.fused_names:
        parts = (
            ("self_attn.qkv_proj", "qkv", 0, q + 2 * kv, shape.hidden_size),
            ("self_attn.o_proj", "o", 0, shape.hidden_size, q),
            ("mlp.gate_up_proj", "gate_up", 0, 2 * inner, shape.hidden_size),
            ("mlp.down_proj", "down", 0, shape.hidden_size, inner),
        )
    else:
        parts = (
            ("self_attn.q_proj", "qkv", 0, q, shape.hidden_size),
            ("self_attn.k_proj", "qkv", q, q + kv, shape.hidden_size),
            ("self_attn.v_proj", "qkv", q + kv, q + 2 * kv, shape.hidden_size),
            ("self_attn.o_proj", "o", 0, shape.hidden_size, q),
            ("mlp.gate_proj", "gate_up", 0, inner, shape.hidden_size),
            ("mlp.up_proj", "gate_up", inner, 2 * inner, shape.hidden_size),
            ("mlp.down_proj", "down", 0, shape.hidden_size, inner),
        )
    return tuple(
        Slot(f"model.layers.{layer}.{name}", Site(layer, linear), start, stop, inputs)
        for layer in range(shape.layers)
        for name, linear, start, stop, inputs in parts
    )


def all_linear_targets(config: DecoderConfig) -> tuple[str, ...]:
    """The Hugging Face names of a layer's linears: what "all linear layers" means for this family."""
    return targets_of(tuple(slot for slot in linear_slots(config) if slot.site.layer == 0))


def targets_of(slots: tuple[Slot, ...]) -> tuple[str, ...]:
    """The distinct last names of these linears, in order of first appearance."""
    return tuple(dict.fromkeys(slot.name.rsplit(".", 1)[-1] for slot in slots))


def _architecture(raw: Mapping[str, Any]) -> str:
    named = raw.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise InvalidRequest(
            "config.json must name exactly one entry under 'architectures'.",
            code="invalid_base_model",
            param="architectures",
        )
    return named[0]


def _integer(raw: Mapping[str, Any], key: str, *, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise InvalidRequest(
            f"config.json: {key} must be a positive whole number, not {value!r}.", code="invalid_base_model", param=key
        )
    return value


def _head_size(raw: Mapping[str, Any], architecture: str) -> int:
    if architecture == "Qwen3ForCausalLM":
        return _integer(raw, "head_dim", default=128)
    return _integer(raw, "head_dim", default=_integer(raw, "hidden_size") // _integer(raw, "num_attention_heads"))


def _windows(raw: Mapping[str, Any], architecture: str) -> tuple[int | None, ...]:
    layers = _integer(raw, "num_hidden_layers")
    if architecture == "LlamaForCausalLM":
        return (None,) * layers
    if architecture in ("MistralForCausalLM", "Phi3ForCausalLM"):
        window = raw.get("sliding_window", 4096 if architecture == "MistralForCausalLM" else None)
        return (window,) * layers
    if not raw.get("use_sliding_window", False):
        return (None,) * layers
    window = raw.get("sliding_window", 4096)
    kinds = raw.get("layer_types")
    if kinds is None:
        first = raw.get("max_window_layers", 28)
        return tuple(window if layer >= first else None for layer in range(layers))
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The rope settings as one object: transformers 5 writes `rope_parameters`, older ones `rope_scaling` and more."""
    fields = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    for key, default in (("rope_theta", 10_000.0), ("partial_rotary_factor", 1.0)):
        fields.setdefault(key, raw[key] if raw.get(key) is not None else default)
    top_level = raw.get("original_max_position_embeddings")
    if top_level is None and _named(raw, "Phi3ForCausalLM"):
        top_level = 4096
    if top_level is not None:
        fields["original_max_position_embeddings"] = top_level
    fields.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    return fields


def _named(raw: Mapping[str, Any], architecture: str) -> bool:
    return raw.get("architectures") == [architecture]


def _rope_kind(fields: Mapping[str, Any]) -> str:
    kind = str(fields.get("rope_type") or fields.get("type") or "default")
    # Early Phi-3 files say "su", and Phi-3-small era files "yarn", for what became longrope.
    return "longrope" if kind in ("su", "yarn") and "short_factor" in fields else kind


def _rope(raw: Mapping[str, Any], head_size: int) -> RopeConfig:
    fields = _rope_fields(raw)
    theta, rotary_size = float(fields["rope_theta"]), int(head_size * float(fields["partial_rotary_factor"]))
    kind = _rope_kind(fields)
    if kind == "linear":
        return RopeConfig("linear", theta, rotary_size, factor=_positive(fields, "factor"))
    if kind == "llama3":
        return RopeConfig(
            "llama3",
            theta,
            rotary_size,
            factor=_positive(fields, "factor"),
            low_frequency_factor=_positive(fields, "low_freq_factor"),
            high_frequency_factor=_positive(fields, "high_freq_factor"),
            original_positions=_integer(fields, "original_max_position_embeddings"),
        )
    if kind == "longrope":
        return _longrope(
            fields, theta=theta, rotary_size=rotary_size, positions=_integer(raw, "max_position_embeddings")
        )
    return RopeConfig("default", theta, rotary_size)


def _longrope(fields: Mapping[str, Any], *, theta: float, rotary_size: int, positions: int) -> RopeConfig:
    """LongRoPE (Ding et al. 2024), with the attention factor that transformers derives from the two context lengths."""
    original = _integer(fields, "original_max_position_embeddings")
    short, long = _factors(fields, "short_factor", rotary_size), _factors(fields, "long_factor", rotary_size)
    factor = fields.get("factor") or positions / original
    scaling = fields.get("attention_factor")
    if scaling is None:
        scaling = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeConfig(
        "longrope",
        theta,
        rotary_size,
        original_positions=original,
        short_factors=short,
        long_factors=long,
        scaling=float(scaling),
    )


def _positive(fields: Mapping[str, Any], key: str) -> float:
    value = fields.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise InvalidRequest(
            f"config.json: rope {key} must be a positive number, not {value!r}.", code="invalid_base_model", param=key
        )
    return float(value)


def _factors(fields: Mapping[str, Any], key: str, rotary_size: int) -> tuple[float, ...]:
    values = fields.get(key)
    if not isinstance(values, list) or len(values) != rotary_size // 2:
        raise InvalidRequest(
            f"config.json: rope {key} must be a list of {rotary_size // 2} numbers.",
            code="invalid_base_model",
            param=key,
        )
    return tuple(float(value) for value in values)
