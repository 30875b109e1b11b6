"""Any other Hugging Face causal language model behind our decoder's interface, computed by transformers itself.

Knows how to route a transformers model's attention to the caller's `attend`, and its linears to an adapter. Refuses
remote code, and every model that it cannot compute exactly: on loading, each model must agree with its own reference
attention on a small probe. Slower than our own decoder; the hot path never comes here.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smedje.errors import InvalidRequest, UnsupportedField
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.config import DecoderShape, Site, Slot, read_raw_config
from smedje.modeling.transformer import Attend, LowRank

_ATTENTION = "smedje"
_PROBE_TOLERANCE = 1e-3
# Arguments that transformers hands to attention functions and that change nothing here.
_HARMLESS = frozenset(
    ("position_ids", "use_cache", "output_attentions", "output_hidden_states", "return_dict", "is_causal")
)


class _Route:
    """The caller's `attend` during one forward pass, and which layers came to it."""

    def __init__(self, attend: Attend, shape: DecoderShape) -> None:
        self.attend, self.shape = attend, shape
        self.layers: set[int] = set()


class _Held:
    """Adapter and noise of the forward pass under way, outside nn.Module, which would take a module for its own."""

    def __init__(self) -> None:
        self.lora: LowRank | None = None
        self.noise: Tensor | None = None


class FallbackDecoder(nn.Module):
    """A transformers model with the interface of transformer.Decoder. Made by `load_fallback`."""

    def __init__(self, model: Any, shape: DecoderShape) -> None:
        super().__init__()
        self.model = model
        self.shape = shape
        self.rows, self.reentrant = next(model.parameters()).dtype, False
        self._held = _Held()
        slots = []
        for name, site, linear in _linears(model):
            slots.append(Slot(name, site, 0, linear.out_features, linear.in_features))
            linear.register_forward_hook(self._adapted(site))
        self.slots = tuple(slots)
        model.get_input_embeddings().register_forward_hook(self._noised)
        self._names = {slot.site: slot.name for slot in slots}

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attend,
        lora: LowRank | None = None,
        *,
        noise: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm: tokens, positions int64 [T] -> [T, H]. As transformer.Decoder.forward.

        Not reentrant: one forward pass at a time for one instance.
        """
        route = _Route(attend, self.shape)
        self._held.lora, self._held.noise = lora, noise
        try:
            output = self.model.base_model(
                input_ids=tokens[None], position_ids=positions[None], use_cache=False, smedje_route=route
            )
        finally:
            self._held.lora, self._held.noise = None, None
        if len(route.layers) != self.shape.layers:
            raise UnsupportedField(
                f"{type(self.model).__name__} ran {len(route.layers)} of its {self.shape.layers} layers through the "
                "attention interface: its sequences cannot be kept apart, so it is not offered.",
                code="unsupported_architecture",
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden if wanted is None else hidden.index_select(0, wanted)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of chosen rows: [R, H] -> [R, V], with the model's soft cap where it has one."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def weight(self, site: Site) -> Tensor:
        """A linear's frozen weight [out, in]."""
        weight: Tensor = self.model.get_submodule(self._names[site]).weight
        return weight

    def bias(self, site: Site) -> Tensor | None:
        """A linear's bias [out], or None."""
        bias: Tensor | None = self.model.get_submodule(self._names[site]).bias
        return bias

    def row_squares(self, site: Site) -> Tensor:
        """The sum of squares of each row of a linear's weight, fp32 [out]."""
        return self.weight(site).detach().float().square().sum(1)

    def pack(self) -> None:
        """Nothing: transformers' layers keep their plain weights."""

    def export_state(self) -> Mapping[str, Tensor]:
        """Every stored tensor under its Hugging Face name; tied tensors once."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in tied}

    def _noised(self, _: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        noise = self._held.noise
        return None if noise is None else output + noise.to(output.device, output.dtype)[None]

    def _adapted(self, site: Site) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            lora = self._held.lora
            if lora is None:
                return None
            x = inputs[0]
            if x.ndim != 3 or x.shape[0] != 1:
                raise UnsupportedField(
                    f"Linear {self._names[site]} does not see one row a token; an adapter on it is not offered.",
                    code="unsupported_architecture",
                )
            return lora(site, x[0], output[0])[None]

        return add


def load_fallback(folder: Path, *, dtype: torch.dtype, device: torch.device | str) -> FallbackDecoder:
    """Load any causal language model that transformers knows without remote code, and prove it on a probe.

    Raises UnsupportedField for a model that cannot be computed exactly, InvalidRequest for a broken folder.
    """
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    if read_raw_config(folder).get("quantization_config"):
        raise UnsupportedField(
            f"{folder}: the weights are quantised; pull the model in float16, bfloat16 or float32.",
            code="unsupported_architecture",
        )

    AttentionInterface.register(_ATTENTION, _routed_attention)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=_ATTENTION,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise InvalidRequest(f"{folder} cannot be loaded: {error}", code="invalid_base_model") from error
    _check_loading(info, folder)
    model = model.to(device).eval().requires_grad_(False)
    decoder = FallbackDecoder(model, _shape(model.config))
    _prove(decoder)
    return decoder


def _check_loading(info: Mapping[str, Any], folder: Path) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            names = sorted(str(name) for name in info[kind])
            raise InvalidRequest(
                f"{folder}: {kind.replace('_', ' ')}: {names[0]} ({len(names)} in all).", code="invalid_base_model"
            )


def _shape(config: Any) -> DecoderShape:
    heads, layers = _size(config, "num_attention_heads"), _size(config, "num_hidden_layers")
    hidden = _size(config, "hidden_size")
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds is None:
        windows: tuple[int | None, ...] = (window,) * layers
    else:
        windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return DecoderShape(
        vocab_size=_size(config, "vocab_size"),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=int(getattr(config, "head_dim", None) or hidden // heads),
        max_positions=_size(config, "max_position_embeddings"),
        windows=windows,
    )


def _size(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int):
        raise UnsupportedField(
            f"{type(config).__name__} has no {name}: this kind of model is not offered.",
            code="unsupported_architecture",
        )
    return value


def _linears(model: Any) -> Iterator[tuple[str, Site, nn.Linear]]:
    """Every nn.Linear inside a numbered layer: its path, its site and the module."""
    for name, module in model.named_modules():
        parts = name.split(".")
        number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
        if isinstance(module, nn.Linear) and number is not None:
            yield name, Site(int(parts[number]), ".".join(parts[number + 1 :])), module


def _routed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, H, T, D] each -> [1, T, Hq, D]. The signature is transformers'."""
    route = options.pop("smedje_route", None)
    if not isinstance(route, _Route):
        raise UnsupportedField(
            "This model does not pass arguments on to its attention; it is not offered.",
            code="unsupported_architecture",
        )
    layer = int(getattr(module, "layer_idx"))  # noqa: B009 (nn.Module's attributes are untyped)
    scaling, window = options.pop("scaling", None), options.pop("sliding_window", None)
    dropout = options.pop("dropout", 0.0)
    odd = {name: value for name, value in options.items() if value is not None and name not in _HARMLESS}
    if attention_mask is not None:
        odd["attention_mask"] = "a mask"
    if dropout:
        odd["dropout"] = dropout
    if window != route.shape.windows[layer]:
        odd["sliding_window"] = window
    if getattr(module, "is_causal", True) is False:
        odd["is_causal"] = False
    if value.shape[-1] != query.shape[-1]:
        odd["value head size"] = value.shape[-1]
    if odd:
        raise UnsupportedField(
            f"{type(module).__name__} needs attention with {', '.join(f'{k}={v}' for k, v in sorted(odd.items()))}, "
            "which is not computed here; the model is not offered.",
            code="unsupported_architecture",
        )
    size = query.shape[-1]
    if scaling is not None and scaling != size**-0.5:
        query = query * (scaling * size**0.5)
    route.layers.add(layer)
    rows = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return route.attend(layer, *rows)[None], None


@torch.no_grad()
def _prove(decoder: FallbackDecoder) -> None:
    """Two short documents in one stream must come out as the model's own reference attention computes each alone."""
    model, lengths = decoder.model, (5, 7)
    device = next(model.parameters()).device
    documents = [torch.arange(1, length + 1, device=device) * 7 % decoder.shape.vocab_size for length in lengths]
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    attend = DocumentAttention(lengths, decoder.shape.windows)
    ours = decoder.head(decoder.forward(torch.cat(documents), positions, attend))
    model.set_attn_implementation("eager")
    try:
        theirs = torch.cat([model(input_ids=document[None], use_cache=False).logits[0] for document in documents])
    finally:
        model.set_attn_implementation(_ATTENTION)
    tolerance = _PROBE_TOLERANCE if ours.dtype == torch.float32 else 0.05
    difference = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp(min=1e-6))
    if not difference <= tolerance:
        raise UnsupportedField(
            f"{type(model).__name__} differs from its own reference by {difference:.1e} when its documents share a "
            "stream; it is not offered.",
            code="unsupported_architecture",
        )
