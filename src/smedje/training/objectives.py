"""Objectives: functions of (network, batch) that return sums, never means. The loop divides once per optimizer step.

Letters: T rows of a flat stream, R labelled rows, H hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from smedje.data.batches import FlatBatch
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.lora import TrainableLora


class Network(Protocol):
    """What an objective needs of a model: hidden rows for a flat stream, and logits for chosen rows."""

    def __call__(self, tokens: Tensor, positions: Tensor, attend: DocumentAttention, lora: TrainableLora) -> Tensor:
        """Hidden rows [T, H]."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [R, V] of hidden rows [R, H]."""
        ...


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
        tokens=torch.tensor(batch.tokens, dtype=torch.int64, device=device),
        positions=torch.tensor(batch.positions, dtype=torch.int64, device=device),
        lengths=tuple(batch.lengths),
        target_rows=torch.tensor(batch.target_rows, dtype=torch.int64, device=device),
        targets=torch.tensor(batch.targets, dtype=torch.int64, device=device),
        weights=torch.tensor(batch.target_weights, dtype=torch.float32, device=device),
    )


def supervised(decoder: Network, lora: TrainableLora, batch: TensorBatch) -> Sums:
    """Cross-entropy on labelled rows only; the head never sees the others."""
    hidden = decoder(batch.tokens, batch.positions, DocumentAttention(batch.lengths), lora)
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
