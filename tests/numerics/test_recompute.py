"""Layers that are computed again in the backward pass: the same bits for a fraction of the kept numbers."""

from pathlib import Path

import pytest
import torch
from tests.training_runs import Bench, bench

from smedje.errors import InvalidRequest
from smedje.modeling.attention import DocumentAttention
from smedje.training.options import parse_options
from smedje.training.spec import LoraSpec, OptimizerSpec

AGAIN = LoraSpec(rank=4, alpha=8.0, recompute=True)


@pytest.fixture
def place(tmp_path: Path) -> Bench:
    """Six steps on one thread."""
    return bench(tmp_path).with_spec(max_steps=6)


def trained(place: Bench) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in place.train()[1].trained().items()}


@pytest.mark.parametrize("changes", [{}, {"threads": 2}, {"share_prefixes": False}, {"micro_batch_tokens": 64}])
def test_recomputing_changes_no_bit(place: Bench, changes: dict[str, object]) -> None:
    """Every trained tensor is equal, bit for bit, with shared beginnings, side by side and one row at a time."""
    plain = trained(place.with_spec(**changes))
    again = trained(place.with_spec(**changes, lora=AGAIN))
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_recomputing_changes_no_bit_of_a_full_tuning(place: Bench) -> None:
    """The same holds where all weights are trained."""
    optimizer = OptimizerSpec(kind="adamw", learning_rate=1e-4)
    plain = trained(place.with_spec(lora=LoraSpec(full=True), optimizer=optimizer))
    again = trained(place.with_spec(lora=LoraSpec(full=True, recompute=True), optimizer=optimizer))
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def kept_bytes(place: Bench) -> int:
    """Bytes that a forward pass of 200 tokens through the decoder leaves for the backward pass."""
    _, state = place.prepare()
    assert state.lora is not None
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    tokens, positions = torch.arange(200) % 250, torch.arange(200)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        state.decoder.forward(tokens, positions, DocumentAttention((200,), state.decoder.shape.windows), state.lora)
    return sum(kept.values())


def test_layers_keep_their_input_alone(place: Bench) -> None:
    """With the option the forward pass leaves less than half as many bytes; this fails when it is ignored."""
    assert kept_bytes(place.with_spec(lora=AGAIN)) < kept_bytes(place) / 2


def test_dropout_is_refused_beside_it() -> None:
    """A layer that is computed again would draw another mask."""
    with pytest.raises(InvalidRequest) as refused:
        parse_options({"recompute": True, "lora_dropout": 0.1})
    assert refused.value.param == "smedje.recompute"
