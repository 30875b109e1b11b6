"""Objectives: functions of (network, batch) that return sums, never means. The loop divides once per optimizer step.

Letters: T rows of a flat stream, R labelled rows, H hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smedje.data.batches import FlatBatch
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.transformer import CausalDecoder, LowRank


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """A flat stream on the device: tokens and positions [T], rows and targets and weights [R], lengths of documents."""

    tokens: Tensor
    positions: Tensor
    lengths: Sequence[int]
    target_rows: Tensor
    targets: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over labelled rows. loss: weighted negative log-likelihood in nats, a scalar with a gradient.

    weight: sum of target weights. correct and count: greedy hits among the labelled rows.
    """

    loss: Tensor
    weight: float
    correct: int
    count: int


def to_tensors(batch: FlatBatch, device: str) -> TensorBatch:
    """The batch as tensors on `device`."""
    return TensorBatch(
        tokens=torch.frombuffer(batch.tokens, dtype=torch.int64).to(device),
        positions=torch.frombuffer(batch.positions, dtype=torch.int64).to(device),
        lengths=tuple(batch.lengths),
        target_rows=torch.frombuffer(batch.target_rows, dtype=torch.int64).to(device),
        targets=torch.frombuffer(batch.targets, dtype=torch.int64).to(device),
        weights=torch.frombuffer(batch.target_weights, dtype=torch.float32).to(device),
    )


def supervised(decoder: CausalDecoder, lora: LowRank, batch: TensorBatch) -> Sums:
    """Cross-entropy on labelled rows only; the head never sees the others."""
    attend = DocumentAttention(batch.lengths, decoder.shape.windows)
    hidden = decoder.forward(batch.tokens, batch.positions, attend, lora)
    logits = decoder.head(hidden.index_select(0, batch.target_rows)).float()
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    with torch.no_grad():
        correct = int((logits.argmax(dim=-1) == batch.targets).sum())
    return Sums(
        loss=(losses * batch.weights).sum(),
        weight=float(batch.weights.sum()),
        correct=correct,
        count=batch.targets.numel(),
    )
