"""Rotary position embedding: inverse frequencies per kind, and turning query and key heads by their positions.

Knows RoPE (Su et al. 2021), its linear, Llama-3 and LongRoPE scalings, and partial rotation. Refuses to know batches,
documents and caches: a row's angle depends on its position number alone.
"""

import math

import torch
from torch import Tensor

from smedje.modeling.config import RopeConfig, RopeRegime


def inverse_frequencies(rope: RopeConfig, regime: RopeRegime = "short") -> Tensor:
    """Angles per position step, fp32 [rotary_size / 2]. `regime` matters to longrope alone (config.rope_regime)."""
    exponents = torch.arange(0, rope.rotary_size, 2, dtype=torch.int64).float() / rope.rotary_size
    if rope.kind == "longrope":
        factors = rope.long_factors if regime == "long" else rope.short_factors
        return 1.0 / (torch.tensor(factors, dtype=torch.float32) * rope.theta**exponents)
    plain = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return plain / rope.factor
    return _llama3(plain, rope) if rope.kind == "llama3" else plain


def _llama3(plain: Tensor, rope: RopeConfig) -> Tensor:
    """Llama 3.1's scaling: long waves slowed by `factor`, short ones kept, a linear blend between."""
    waves = 2 * math.pi / plain
    low_wave = rope.original_positions / rope.low_frequency_factor
    high_wave = rope.original_positions / rope.high_frequency_factor
    blend = (rope.original_positions / waves - rope.low_frequency_factor) / (
        rope.high_frequency_factor - rope.low_frequency_factor
    )
    blended = (1 - blend) * plain / rope.factor + blend * plain
    scaled = torch.where(waves > low_wave, plain / rope.factor, plain)
    return torch.where((waves >= high_wave) & (waves <= low_wave), blended, scaled)


def turns(positions: Tensor, frequencies: Tensor, scaling: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin for each row: [T, 1, rotary_size / 2], computed in fp32 and rounded to `dtype` once."""
    angles = positions.to(torch.float32)[:, None, None] * frequencies
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)
