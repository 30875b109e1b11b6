"""Tuning all weights: a decoder of the run's own whose every weight is trained, and its weights as one file.

Knows what such a run starts from: the base model, an earlier full tuning, or an adapter, which is folded in first.
Refuses to know losses and schedules; a decoder that other runs share is never touched.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from smedje.domain.catalog import FULL_WEIGHTS_FILE
from smedje.errors import UnsupportedField
from smedje.modeling.adapter import load_adapter
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import merge_into
from smedje.modeling.tensor_file import TensorWriter
from smedje.modeling.transformer import CausalDecoder, Decoder
from smedje.objects.store import ByteSink, Objects
from smedje.training.loop import State
from smedje.training.optimizer import make_optimizer
from smedje.training.spec import TrainingSpec


def whole_decoder(objects: Objects, spec: TrainingSpec, *, cache: Path) -> Decoder:
    """The model that training starts from, fp32, every weight trainable.

    Raises UnsupportedField for an architecture that is not computed by our own decoder.
    """
    initial = None if spec.lora.initial is None else objects.local_folder(spec.lora.initial, cache)
    weights = initial if initial is not None and (initial / FULL_WEIGHTS_FILE).exists() else None
    decoder = load_decoder(
        Path(spec.base_folder),
        dtype=torch.float32,
        device=spec.device,
        context_length=spec.data.max_tokens,
        weights=weights,
    )
    if not isinstance(decoder, Decoder):
        raise UnsupportedField(
            f"All weights of {spec.base_model} cannot be tuned: its architecture is not one of our own. Use LoRA.",
            param="smedje.tuning",
        )
    if initial is not None and weights is None:
        merge_into(decoder, *load_adapter(initial))
    return decoder.requires_grad_(True)


def full_state(spec: TrainingSpec, decoder: CausalDecoder) -> State:
    """Nothing trained yet; the decoder's weights are what is trained."""
    assert isinstance(decoder, Decoder), "whole_decoder makes it"
    weights = dict(decoder.named_parameters())
    return State(
        decoder=decoder, lora=None, weights=weights, optimizer=make_optimizer(weights.values(), spec.optimizer)
    )


def write_tensors(out: ByteSink, tensors: Mapping[str, Tensor]) -> None:
    """Write fp32 tensors as a safetensors file, one after another, so that no copy of them all is in memory."""
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    with TensorWriter(out, {name: tuple(tensor.shape) for name, tensor in plain.items()}) as file:
        for name, tensor in plain.items():
            file.write(name, tensor.to("cpu", torch.float32).contiguous().numpy())
