"""Low-rank adapters on a frozen decoder: one being trained, or merged into the weights.

Knows LoRA (Hu et al. 2021; y + scale * B A x) on fused linears, DoRA (dora.py) on top of it, and PEFT's names and
initial values. Refuses to know optimizers, files (adapter.py), serving (served_adapters.py) and the decoder's inside:
it sees slots and a linear's input and output.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smedje.errors import InvalidRequest
from smedje.modeling.config import Site, Slot, all_linear_targets, targets_of
from smedje.modeling.dora import magnitude_name, row_norms, site_gains
from smedje.modeling.low_rank import Factors, add_low_rank
from smedje.modeling.products import frozen_linear
from smedje.modeling.transformer import CausalDecoder

__all__ = [
    "AdapterConfig",
    "TrainableLora",
    "adapted_slots",
    "all_linear_targets",
    "merge_into",
    "merged_state",
]

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter's shape. targets: last names of Hugging Face linears; layers: which layers (None: all).

    rslora: scale alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023). dora: a magnitude for each row.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0
    rslora: bool = False
    layers: tuple[int, ...] | None = None
    dora: bool = False

    @property
    def scale(self) -> float:
        """The factor on B A x."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def weight_names(slot: Slot) -> tuple[str, str]:
    """PEFT's names of a slot's A [rank, in] and B [out, rank]."""
    return f"{_PREFIX}{slot.name}.lora_A.weight", f"{_PREFIX}{slot.name}.lora_B.weight"


def tensor_names(slots: Iterable[Slot], config: AdapterConfig) -> list[str]:
    """The names of all tensors of an adapter on these slots."""
    names = [name for slot in slots for name in weight_names(slot)]
    return names + [magnitude_name(slot) for slot in slots] if config.dora else names


def adapted_slots(slots: Sequence[Slot], config: AdapterConfig) -> tuple[Slot, ...]:
    """The slots that this adapter touches. InvalidRequest names a target or layer that the base model does not have."""
    known = targets_of(tuple(slots))
    for target in config.targets:
        if target not in known:
            raise InvalidRequest(
                f"This base model has no linear named {target!r}; choose from {', '.join(known)}.",
                code="invalid_target",
                param="targets",
            )
    last = max(slot.site.layer for slot in slots)
    for layer in config.layers or ():
        if not 0 <= layer <= last:
            raise InvalidRequest(
                f"This base model has layers 0 to {last}; there is no layer {layer}.",
                code="invalid_layer",
                param="layers",
            )
    return tuple(
        slot
        for slot in slots
        if slot.name.rsplit(".", 1)[-1] in config.targets
        and (config.layers is None or slot.site.layer in config.layers)
    )


class _Part(nn.Module):
    """A [rank, in] and B [out, rank] of one Hugging Face linear, fp32; with DoRA its magnitudes M [out] too."""

    M: nn.Parameter | None

    def __init__(self, slot: Slot, rank: int, generator: torch.Generator, device: torch.device | str) -> None:
        super().__init__()
        self.slot = slot
        a = torch.empty(rank, slot.inputs)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        self.A = nn.Parameter(a.to(device))
        self.B = nn.Parameter(torch.zeros(slot.stop - slot.start, rank, device=device))
        self.M = None

    def add_magnitude(self, base: CausalDecoder) -> None:
        """Begin with the base weight's own row norms, so that a fresh adapter changes nothing."""
        self.M = nn.Parameter(row_norms(base, self.slot, self.A, self.B, 0.0))


class TrainableLora(nn.Module):
    """One adapter in training, a LowRank. Its parameters are fp32 and drawn as PEFT draws them (A uniform, B zero).

    generator: a CPU generator for the initial A; the same seed gives the same adapter on every device.
    dropout_seed: starts the separate stream of dropout masks; `rng_state` saves it for an exact resume. One mask serves
    all parts of a fused linear (PEFT draws one for each). Dropout acts in training mode only.
    base: the decoder that it is trained on; DoRA needs its weights, plain LoRA does not.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        config: AdapterConfig,
        *,
        generator: torch.Generator,
        dropout_seed: int = 0,
        device: torch.device | str = "cpu",
        base: CausalDecoder | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self._sites: dict[Site, list[_Part]] = {}
        parts = [_Part(slot, config.rank, generator, device) for slot in adapted_slots(slots, config)]
        for part in parts:
            self._sites.setdefault(part.slot.site, []).append(part)
        self.parts = nn.ModuleList(parts)
        self._magnitudes = None
        if config.dora:
            assert base is not None, "DoRA needs the weights that it turns"
            self._magnitudes = _Magnitudes(base)
            for part in parts:
                part.add_magnitude(base)
        self._dropout_stream = torch.Generator(device=device).manual_seed(dropout_seed)

    def forward(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
        """Write scale * B A dropout(x) into y and return it, with DoRA's gains in a new y. x [T, in], y [T, out]."""
        parts = self._sites.get(site)
        if parts is None:
            return y
        dropped = self.training and self.config.dropout > 0
        if dropped:
            keep = 1 - self.config.dropout
            x = x * (torch.empty_like(x).bernoulli_(keep, generator=self._dropout_stream) / keep)
        if self._magnitudes is not None:
            return self._magnitudes.turned(self, parts, x, y, dropped=dropped)
        return self.add_low_rank(parts, x, y)

    def factors(self, site: Site) -> Factors | None:
        """A site's A and B for a product that adds them itself; None where dropout or DoRA have a say."""
        if self._magnitudes is not None or (self.training and self.config.dropout > 0):
            return None
        parts = self._sites.get(site, ())
        spans = tuple((part.slot.start, part.slot.stop) for part in parts)
        return Factors(self.config.scale, spans, tuple(part.A for part in parts), tuple(part.B for part in parts))

    def add_low_rank(self, parts: "Sequence[_Part]", x: Tensor, y: Tensor) -> Tensor:
        """scale * B A x of a site's parts written into y."""
        spans = [(part.slot.start, part.slot.stop) for part in parts]
        return add_low_rank(y, x, self.config.scale, spans, [part.A for part in parts], [part.B for part in parts])

    def weights(self) -> dict[str, Tensor]:
        """The adapter's tensors under PEFT's names, detached; they share storage with the parameters."""
        weights = {}
        for part in self._parts():
            name_a, name_b = weight_names(part.slot)
            weights[name_a], weights[name_b] = part.A.detach(), part.B.detach()
            if part.M is not None:
                weights[magnitude_name(part.slot)] = part.M.detach()
        return weights

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy tensors in by PEFT's names. InvalidRequest when a name or size does not match this adapter exactly."""
        own = self.weights()
        check_names(own, weights)
        for name, tensor in own.items():
            if tensor.shape != weights[name].shape:
                raise InvalidRequest(
                    f"Adapter tensor {name} is {tuple(weights[name].shape)}; this adapter needs {tuple(tensor.shape)}.",
                    code="invalid_adapter",
                )
            tensor.copy_(weights[name])

    def rng_state(self) -> Tensor:
        """The state of the dropout stream, for a checkpoint."""
        return self._dropout_stream.get_state()

    def set_rng_state(self, state: Tensor) -> None:
        """Go on with the dropout stream where `rng_state` was taken."""
        self._dropout_stream.set_state(state)

    def _parts(self) -> Iterable[_Part]:
        for part in self.parts:
            assert isinstance(part, _Part)
            yield part


class _Magnitudes:
    """The base model under a DoRA adapter. No nn.Module, which would take the base weights for its own."""

    def __init__(self, base: CausalDecoder) -> None:
        self._base = base

    def turned(self, lora: TrainableLora, parts: Sequence[_Part], x: Tensor, y: Tensor, *, dropped: bool) -> Tensor:
        """y with the gains on W x + scale B A x, the bias left alone. dropped: x is not what y was computed from, so
        what the gains change is computed from x, as PEFT does."""
        site, scale = parts[0].slot.site, lora.config.scale
        gains = []
        for part in parts:
            assert part.M is not None
            gains.append((part.slot, part.M / row_norms(self._base, part.slot, part.A, part.B, scale)))
        gain = site_gains(gains, y.shape[1]).to(y.dtype)
        if dropped:
            plain = frozen_linear(x, self._base.weight(site))
            return y - plain + gain * lora.add_low_rank(parts, x, plain.clone())
        bias = self._base.bias(site)
        if bias is None:
            return gain * lora.add_low_rank(parts, x, y)
        return gain * lora.add_low_rank(parts, x, y - bias) + bias


def check_names(own: Iterable[str], given: Iterable[str]) -> None:
    """InvalidRequest unless both name the same tensors."""
    expected, actual = set(own), set(given)
    if expected != actual:
        missing, extra = sorted(expected - actual), sorted(actual - expected)
        raise InvalidRequest(
            "The adapter does not fit this base model and configuration: "
            f"missing {missing[:3] or 'nothing'}, unexpected {extra[:3] or 'nothing'}"
            f" ({len(missing)} missing, {len(extra)} unexpected).",
            code="invalid_adapter",
        )


def row_gains(decoder: CausalDecoder, slot: Slot, weights: Mapping[str, Tensor], config: AdapterConfig) -> Tensor:
    """DoRA's factor on each row of a slot: fp32 [out]."""
    a, b = (weights[name] for name in weight_names(slot))
    norms = row_norms(decoder, slot, a, b, config.scale)
    return weights[magnitude_name(slot)].to(norms.device, torch.float32) / norms


def _merged(
    decoder: CausalDecoder, weights: Mapping[str, Tensor], config: AdapterConfig
) -> Iterable[tuple[Slot, Tensor]]:
    """Each adapted slot's weight with the adapter in it, fp32."""
    slots = adapted_slots(decoder.slots, config)
    check_names(tensor_names(slots, config), weights)
    for slot in slots:
        base = decoder.weight(slot.site)
        assert not base.is_mkldnn, "packed weights cannot be read"
        a, b = (weights[name].to(base.device, torch.float32) for name in weight_names(slot))
        whole = base[slot.start : slot.stop].float() + config.scale * (b @ a)
        yield slot, whole * row_gains(decoder, slot, weights, config)[:, None] if config.dora else whole


@torch.no_grad()
def merge_into(decoder: CausalDecoder, weights: Mapping[str, Tensor], config: AdapterConfig) -> None:
    """Add the adapter to the decoder's own weights in place: W + scale * B A, summed in fp32 and rounded once."""
    for slot, whole in _merged(decoder, weights, config):
        decoder.weight(slot.site)[slot.start : slot.stop].copy_(whole)


@torch.no_grad()
def merged_state(decoder: CausalDecoder, weights: Mapping[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    """Every tensor of base plus adapter under its Hugging Face name; the decoder stays as it is.

    Untouched tensors are views of the decoder's.
    """
    state = dict(decoder.export_state())
    for slot, whole in _merged(decoder, weights, config):
        state[f"{slot.name}.weight"] = whole.to(state[f"{slot.name}.weight"].dtype)
    return state
