"""In which numbers a run holds its base model and multiplies: exact fp32, or bf16 where the processor has it.

Knows the processor and the memory; decides from the spec alone otherwise. Refuses to know layers.
"""

from pathlib import Path

import torch

from smedje.errors import InvalidRequest
from smedje.modeling.config import read_decoder_config, read_raw_config, why_not_owned
from smedje.modeling.products import BF16_PRODUCTS, FP32_OF_BF16, Numbers, multiplies_bf16, plain
from smedje.modeling.transformer import CausalDecoder, Decoder
from smedje.objects.machine import usable_memory
from smedje.training.memory import held_in_bf16
from smedje.training.spec import TrainingSpec


def base_numbers(spec: TrainingSpec, base: Path) -> Numbers:
    """What the run's base model is stored as and multiplied in. Raises InvalidRequest for bf16 where it is not offered.

    On a GPU bf16 is for everything that is not trained, as transformers has it there; adapter and optimizer stay fp32.

    fp32 weights that would take more than half of the memory are stored in bf16 and still multiplied in fp32: exact
    for models whose files are bf16.
    """
    asked = spec.lora.precision
    if spec.device == "cuda":
        return plain(torch.float32 if asked == "fp32" else torch.bfloat16)
    if asked == "fp32" and not _is_large(spec, base):
        return plain(torch.float32)
    fits = spec.device == "cpu" and why_not_owned(read_raw_config(base)) is None
    if asked == "bf16" and not (fits and multiplies_bf16()):
        raise InvalidRequest(
            "precision bf16 needs a processor with bf16 products (avx512_bf16 or AMX) and an architecture of our own; "
            "this run has not both. Leave it out, or give auto.",
            code="invalid_option",
            param="smedje.precision",
        )
    if not fits:
        return plain(torch.float32)
    if asked != "fp32" and multiplies_bf16():
        return BF16_PRODUCTS
    return FP32_OF_BF16 if _is_large(spec, base) else plain(torch.float32)


def check_device(device: str) -> None:
    """Raises InvalidRequest for a GPU that PyTorch cannot reach."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidRequest(
            "This job is to train on an NVIDIA GPU, and the installed PyTorch reaches none. Install one with CUDA, or "
            "start the server with SMEDJE_DEVICE=cpu.",
            code="device_unavailable",
        )


def precision_of(decoder: CausalDecoder) -> str:
    """The name of what products of this decoder are computed in."""
    bf16 = isinstance(decoder, Decoder) and decoder.numbers.products == torch.bfloat16
    return "bf16" if bf16 else "fp32"


def _is_large(spec: TrainingSpec, base: Path) -> bool:
    raw = read_raw_config(base)
    if spec.device != "cpu" or why_not_owned(raw) is not None:
        return False
    return held_in_bf16(raw, read_decoder_config(base), memory_bytes=usable_memory())
