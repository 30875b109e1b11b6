"""Our own decoder: one block for the Llama, Mistral, Phi-3, Qwen2 and Qwen3 families, on one flat stream of tokens.

Knows the frozen weights, fused into one product for q|k|v and one for gate|up, and the order of operations. Refuses to
know documents, caches, adapters, losses and files: what a row attends to and what an adapter adds come from the caller.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smedje.modeling.adapted import AsTheyAre, Entry, Frozen, Fusable, Gated, Normed, adapted_linear
from smedje.modeling.config import DecoderConfig, DecoderShape, RopeRegime, Site, Slot, linear_slots
from smedje.modeling.fused import rms_norm, swiglu, turn_heads
from smedje.modeling.heads import HeadSizes
from smedje.modeling.int8 import Int8Weight
from smedje.modeling.products import Numbers, frozen_linear, packed, plain
from smedje.modeling.rope import inverse_frequencies, turns


class Attend(Protocol):
    """What each row attends to. q [T, Hq, D], k and v [T, Hk, D], q and k already turned; returns [T, Hq, D].

    Scores are scaled by 1 / sqrt(D).
    """

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


@runtime_checkable
class TurnsItself(Protocol):
    """An Attend that turns queries and keys on their way: q | k | v side by side [T, N * D] -> [T, Hq * D]."""

    def turn_and_attend(self, qkv: Tensor, cos: Tensor, sin: Tensor, sizes: HeadSizes) -> Tensor: ...


class LowRank(Protocol):
    """Adds an adapter's part to a linear's output: x [T, in], y [T, out] -> [T, out]. It may write into y."""

    def __call__(self, site: Site, x: Tensor, y: Tensor) -> Tensor: ...


class CausalDecoder(Protocol):
    """What training, serving and evaluation need of a base model, ours or a fallback.

    `slots`: its linears by Hugging Face name. `rows`: the type of what flows between linears, and of keys, values and
    served adapters. `reentrant`: whether several passes may run at once. `weight(site)`, `bias(site)`: a linear's
    frozen weight [out, in] and bias [out]. `row_squares(site)`: the sum of squares of each row of a weight, fp32 [out],
    also when packed. `pack()`: get ready for inference alone.
    """

    shape: DecoderShape
    slots: tuple[Slot, ...]
    rows: torch.dtype
    reentrant: bool

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attend,
        lora: LowRank | None = None,
        *,
        noise: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor: ...

    def head(self, hidden: Tensor) -> Tensor: ...

    def weight(self, site: Site) -> Tensor: ...

    def bias(self, site: Site) -> Tensor | None: ...

    def row_squares(self, site: Site) -> Tensor: ...

    def pack(self) -> None: ...

    def export_state(self) -> Mapping[str, Tensor]: ...


class _Pass(NamedTuple):
    """What every layer of one forward pass shares. fused: the adapter is computed with each product, for training."""

    cos: Tensor
    sin: Tensor
    attend: Attend
    lora: LowRank | None
    multiply: torch.dtype
    fused: bool


class Block(nn.Module):
    """The frozen weights of one layer, uninitialised; H hidden, D head size, I intermediate."""

    def __init__(self, config: DecoderConfig, *, numbers: Numbers, device: torch.device | str) -> None:
        super().__init__()

        def empty(*size: int) -> nn.Parameter:
            dtype = numbers.weights if len(size) == 2 else numbers.rows
            return nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)

        def empty_if(wanted: bool, *size: int) -> nn.Parameter | None:
            return empty(*size) if wanted else None

        shape, inner = config.shape, config.intermediate_size
        hidden, heads_size = shape.hidden_size, shape.heads * shape.head_size
        qkv_size = heads_size + 2 * shape.kv_heads * shape.head_size
        self.input_norm = empty(hidden)
        self.qkv: Tensor = empty(qkv_size, hidden)
        self.qkv_bias = empty_if(config.qkv_bias, qkv_size)
        self.q_norm = empty_if(config.qk_norm, shape.head_size)
        self.k_norm = empty_if(config.qk_norm, shape.head_size)
        self.o: Tensor = empty(hidden, heads_size)
        self.o_bias = empty_if(config.o_bias, hidden)
        self.post_norm = empty(hidden)
        self.gate_up: Tensor = empty(2 * inner, hidden)
        self.gate_up_bias = empty_if(config.mlp_bias, 2 * inner)
        self.down: Tensor = empty(hidden, inner)
        self.down_bias = empty_if(config.mlp_bias, hidden)

    def pack(self, *, int8: bool) -> None:
        """Replace the four weights by packed ones; a parameter's name must be free before a plain tensor takes it."""
        qkv, o, gate_up, down = (
            _for_inference(weight, int8=int8) for weight in (self.qkv, self.o, self.gate_up, self.down)
        )
        del self.qkv, self.o, self.gate_up, self.down
        self.qkv, self.o, self.gate_up, self.down = qkv, o, gate_up, down


class Decoder(nn.Module):
    """A frozen causal language model over a flat token stream. Made by `load.load_decoder`; its weights start empty.

    `numbers`: what it stores and what it multiplies; `dtype` for everything where they are not given.
    `regime`: which longrope factors this instance computes with, fixed for its life (config.rope_regime).
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        regime: RopeRegime = "short",
        numbers: Numbers | None = None,
    ) -> None:
        super().__init__()
        self.recompute = False  # whether a layer keeps its input alone and is computed again in the backward pass
        self.numbers = plain(dtype) if numbers is None else numbers
        dtype = self.numbers.weights
        self.rows, self.reentrant = self.numbers.rows, True
        self.config, self.regime = config, regime
        self.shape = config.shape
        self.slots = linear_slots(config)
        self._row_squares: dict[Site, Tensor] = {}
        shape = self.shape
        size = (shape.vocab_size, shape.hidden_size)
        self.embedding = nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)
        self.blocks = nn.ModuleList(Block(config, numbers=self.numbers, device=device) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.empty(size[1], dtype=self.numbers.rows, device=device), requires_grad=False)
        self.output: Tensor = (
            self.embedding
            if config.tie_embeddings
            else nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)
        )
        frequencies = inverse_frequencies(config.rope, regime).to(device)
        self.register_buffer("frequencies", frequencies, persistent=False)

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
        """Hidden states after the final norm. tokens, positions: int64 [T]; noise [T, H] on the embeddings -> [T, H].

        wanted: int64 [R], rows to be given alone, [R, H]: the last layer computes others no further than their keys.
        An adapter must then be one for all rows.
        Rows are independent but for `attend`, so a document's rows come out the same beside any neighbours.
        """
        x = F.embedding(tokens, self.embedding).to(self.numbers.rows)
        if noise is not None:
            x = x + noise.to(x.device, x.dtype)
        cos, sin = turns(positions, self.get_buffer("frequencies"), self.config.rope.scaling, x.dtype)
        shared = _Pass(cos, sin, attend, lora, self.numbers.products, _may_fuse(self.slots[0].site, lora))
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            rows = wanted if layer == self.shape.layers - 1 else None
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(
                    self._layer, layer, block, x, shared, rows, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = self._layer(layer, block, x, shared, rows)
        return rms_norm(x, self.norm, self.config.norm_eps)

    def _layer(self, layer: int, block: Block, x: Tensor, shared: _Pass, wanted: Tensor | None) -> Tensor:
        """One layer's output rows [T, H], or the wanted ones [R, H]."""
        mixed = self._mixed(layer, block, x, shared)
        if wanted is not None:
            mixed, x = mixed.index_select(0, wanted), x.index_select(0, wanted)
        x = x + self._linear(Site(layer, "o"), block, mixed, shared)
        return x + self._mlp(layer, block, x, shared)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of chosen rows, in the type of the product: [R, H] -> [R, V].

        The widest product of a small model: call it on wanted rows only.
        """
        if hidden.dtype != self.output.dtype:
            hidden = hidden.to(self.numbers.products)
        return frozen_linear(hidden, self.output, multiply=self.numbers.products)

    def weight(self, site: Site) -> Tensor:
        """A fused linear's weight [out, in]; the same storage the forward pass reads."""
        weight = getattr(self.blocks[site.layer], site.linear)
        assert isinstance(weight, Tensor)
        return weight

    def bias(self, site: Site) -> Tensor | None:
        """A fused linear's bias [out], or None where the family has none."""
        bias = getattr(self.blocks[site.layer], f"{site.linear}_bias")
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def row_squares(self, site: Site) -> Tensor:
        """The sum of squares of each row of a fused linear's weight, fp32 [out]; also after `pack`."""
        known = self._row_squares.get(site)
        return self.weight(site).detach().float().square().sum(1) if known is None else known

    @torch.no_grad()
    def pack(self, *, int8: bool = False) -> None:
        """Lay the linears out for inference and give the plain ones up: no training, merging or export afterwards.

        CPU only (products.packed); elsewhere nothing changes. A tied embedding then lies in memory twice.
        int8: round the linears to eight bits (int8.why_no_int8 tells where that is not to be had).
        """
        assert self.numbers.weights == self.numbers.products, "packed weights are multiplied as they are stored"
        self._row_squares = {site: self.row_squares(site) for site in {slot.site for slot in self.slots}}
        for block in self.blocks:
            assert isinstance(block, Block)
            block.pack(int8=int8)
        output = self.output
        del self.output
        # A product's result is rounded to its operands' type, and logits rounded to bf16 would tie.
        self.output = _for_inference(output.to(self.numbers.rows), int8=int8)

    @torch.no_grad()
    def pack_beside(self, resident: "Decoder") -> None:
        """`pack` a variant of a packed decoder that differs in its linears alone; the other weights are shared."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.pack(int8=False)
        self.embedding, self.norm = resident.embedding, resident.norm
        del self.output
        self.output = resident.output

    def export_state(self) -> dict[str, Tensor]:
        """Every tensor under its Hugging Face name, as views; q, k, v and gate, up apart where the files are."""
        assert isinstance(self.output, nn.Parameter), "packed weights cannot be read back"
        state: dict[str, Tensor] = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        for slot in self.slots:
            state[f"{slot.name}.weight"] = self.weight(slot.site)[slot.start : slot.stop]
            bias = self.bias(slot.site)
            if bias is not None:
                state[f"{slot.name}.bias"] = bias[slot.start : slot.stop]
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            path = f"model.layers.{layer}"
            state[f"{path}.input_layernorm.weight"] = block.input_norm
            state[f"{path}.post_attention_layernorm.weight"] = block.post_norm
            if block.q_norm is not None and block.k_norm is not None:
                state[f"{path}.self_attn.q_norm.weight"] = block.q_norm
                state[f"{path}.self_attn.k_norm.weight"] = block.k_norm
        if not self.config.tie_embeddings:
            state["lm_head.weight"] = self.output
        return {name: tensor.detach() for name, tensor in state.items()}

    def _mixed(self, layer: int, block: Block, x: Tensor, shared: _Pass) -> Tensor:
        """What each row takes from those that it attends to: [T, Hq * D]."""
        shape = self.shape
        qkv = self._linear(Site(layer, "qkv"), block, x, shared)
        if block.q_norm is not None and block.k_norm is not None:
            qkv = self._normed_heads(qkv, block.q_norm, block.k_norm)
        sizes = HeadSizes(shape.heads, shape.kv_heads, shape.head_size)
        if isinstance(shared.attend, TurnsItself):
            return shared.attend.turn_and_attend(qkv, shared.cos, shared.sin, sizes)
        return shared.attend(layer, *turn_heads(qkv, shared.cos, shared.sin, sizes)).flatten(1)

    def _normed_heads(self, qkv: Tensor, q_norm: Tensor, k_norm: Tensor) -> Tensor:
        """Each query and key head normed over its own values, as Qwen3 does: [T, N * D] -> the same."""
        shape, eps = self.shape, self.config.norm_eps
        heads = qkv.to(q_norm.dtype).view(qkv.shape[0], -1, shape.head_size)
        q, k, v = torch.split(heads, [shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
        normed = torch.cat((rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps), v), dim=1)
        return normed.view(qkv.shape).to(qkv.dtype)

    def _mlp(self, layer: int, block: Block, x: Tensor, shared: _Pass) -> Tensor:
        gate_up = self._linear(Site(layer, "gate_up"), block, x, shared)
        return self._linear(Site(layer, "down"), block, gate_up, shared)

    def _linear(self, site: Site, block: Block, z: Tensor, shared: _Pass) -> Tensor:
        """What comes before a linear, the linear, and its adapter."""
        weight, bias = getattr(block, site.linear), getattr(block, f"{site.linear}_bias")
        if shared.fused:
            assert isinstance(shared.lora, Fusable)
            factors = shared.lora.factors(site)
            assert factors is not None, "an adapter's sites are computed alike"
            entry = _entry(site.linear, block, self.config.norm_eps, shared.multiply)
            return adapted_linear(z, entry, Frozen(weight, bias, shared.multiply), factors)
        x = _before(site.linear, block, z, self.config.norm_eps)
        y = frozen_linear(x, weight, bias, multiply=shared.multiply)
        return y if shared.lora is None else shared.lora(site, x, y)


def _for_inference(weight: Tensor, *, int8: bool) -> Tensor:
    return Int8Weight.of(weight) if int8 else packed(weight)


def _may_fuse(site: Site, lora: LowRank | None) -> bool:
    return torch.is_grad_enabled() and isinstance(lora, Fusable) and lora.factors(site) is not None


def _before(linear: str, block: Block, z: Tensor, eps: float) -> Tensor:
    """A linear's input, in z's type."""
    if linear == "o":
        return z
    if linear == "down":
        return swiglu(z)
    return rms_norm(z, block.input_norm if linear == "qkv" else block.post_norm, eps)


def _entry(linear: str, block: Block, eps: float, dtype: torch.dtype) -> Entry:
    """The same for one that is computed with its adapter."""
    if linear == "o":
        return AsTheyAre()
    if linear == "down":
        return Gated()
    return Normed(block.input_norm if linear == "qkv" else block.post_norm, eps, dtype)
