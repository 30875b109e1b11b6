"""Objectives: functions of (network, batch) that return sums, never means. The loop divides once per optimizer step.

Letters: T rows of a flat stream, D documents in it, R labelled rows, H hidden size, V vocabulary, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from smedje.data.batches import FlatBatch
from smedje.data.forest import Forest
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.forest_attention import ForestAttention
from smedje.modeling.transformer import Attend, CausalDecoder, LowRank
from smedje.modeling.tree_attention import Segment, TreeAttention
from smedje.training.losses import row_losses, summed_cross_entropy
from smedje.training.spec import LossSpec

PLAIN = LossSpec()


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """A flat stream on the device: tokens and positions [T], rows and targets and weights [R], lengths of documents.

    segments: how the stream's parts hang together where beginnings are shared; None when every document stands alone.
    """

    tokens: Tensor
    positions: Tensor
    lengths: Sequence[int]
    target_rows: Tensor
    targets: Tensor
    weights: Tensor
    segments: Sequence[Segment] | None = None


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over what is learnt from: labelled tokens, preference pairs, or labelled examples.

    loss: weighted loss in nats, a scalar with a gradient. weight: sum of weights. correct and count: hits among the
    labelled. labelled: labelled tokens. computed: tokens that went through the network. figures: further sums, by the
    name of their mean. guesses: (label, guess) of each example, where there are classes.
    """

    loss: Tensor
    weight: float
    correct: int
    count: int
    labelled: int = 0
    computed: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    guesses: Sequence[tuple[int, int]] = ()


def to_tensors(stream: FlatBatch | Forest, device: str) -> TensorBatch:
    """The stream as tensors on `device`."""
    batch = stream.batch if isinstance(stream, Forest) else stream
    return TensorBatch(
        tokens=torch.frombuffer(batch.tokens, dtype=torch.int64).to(device),
        positions=torch.frombuffer(batch.positions, dtype=torch.int64).to(device),
        lengths=tuple(batch.lengths),
        target_rows=torch.frombuffer(batch.target_rows, dtype=torch.int64).to(device),
        targets=torch.frombuffer(batch.targets, dtype=torch.int64).to(device),
        weights=torch.frombuffer(batch.target_weights, dtype=torch.float32).to(device),
        segments=[Segment(*s) for s in stream.segments] if isinstance(stream, Forest) else None,
    )


def supervised(decoder: CausalDecoder, lora: LowRank | None, batch: TensorBatch, loss: LossSpec = PLAIN) -> Sums:
    """The loss of labelled rows only; the head never sees the others."""
    # Without an adapter the weights themselves are trained, and the head's gradient is wanted too.
    whole = lora is None and torch.is_grad_enabled()
    if loss.kind == "cross_entropy" and not whole:
        rows = _labelled_rows(decoder, lora, batch)
        total, correct = summed_cross_entropy(decoder.head, rows, batch.targets, batch.weights)
    else:
        losses, correct = _labelled_losses(decoder, lora, batch, loss)
        total = (losses * batch.weights).sum()
    return Sums(
        loss=total,
        weight=float(batch.weights.sum()),
        correct=correct,
        count=batch.targets.numel(),
        labelled=batch.targets.numel(),
        computed=batch.tokens.numel(),
    )


def preference(
    decoder: CausalDecoder, lora: LowRank, reference: LowRank | None, batch: TensorBatch, *, beta: float
) -> Sums:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    Documents 2i and 2i + 1 of the batch are the preferred and the other answer to the same prompt, labelled on the
    answer's tokens alone. reference: the adapter that training started from, None for the bare base model.
    Reward of an answer: beta times how much more likely it has become than it was for the reference.
    """
    policy = _log_likelihoods(decoder, lora, batch)
    with torch.no_grad():
        before = _log_likelihoods(decoder, reference, batch)
    rewards = beta * (policy - before)
    margins = rewards[0::2] - rewards[1::2]
    with torch.no_grad():
        figures = {
            "reward_margin": float(margins.sum()),
            "chosen_reward": float(rewards[0::2].sum()),
            "rejected_reward": float(rewards[1::2].sum()),
        }
    return Sums(
        loss=-F.logsigmoid(margins).sum(),
        weight=float(margins.numel()),
        correct=int((margins > 0).sum()),
        count=margins.numel(),
        labelled=batch.targets.numel(),
        computed=2 * batch.tokens.numel(),
        figures=figures,
    )


def classification(
    decoder: CausalDecoder, lora: LowRank | None, head: Tensor, batch: TensorBatch, loss: LossSpec = PLAIN
) -> Sums:
    """The loss of one label a document. head [K, H] reads the hidden state of its last token; targets are classes."""
    logits = _labelled_rows(decoder, lora, batch).float() @ head.T
    guesses = logits.detach().argmax(dim=-1)
    return Sums(
        loss=(row_losses(logits, batch.targets, loss) * batch.weights).sum(),
        weight=float(batch.weights.sum()),
        correct=int((guesses == batch.targets).sum()),
        count=batch.targets.numel(),
        labelled=batch.targets.numel(),
        computed=batch.tokens.numel(),
        guesses=tuple(zip(batch.targets.tolist(), guesses.tolist(), strict=True)),
    )


def _attend(decoder: CausalDecoder, batch: TensorBatch) -> Attend:
    segments = batch.segments
    if segments is None:
        longest = max(batch.lengths)
        if any(window is not None and window < longest for window in decoder.shape.windows):
            return DocumentAttention(batch.lengths, decoder.shape.windows)
        # Trees of one document each: one hand-written backward instead of autograd's slices and joins per document.
        ends = list(accumulate(batch.lengths))
        segments = [Segment(e - n, e, e) for e, n in zip(ends, batch.lengths, strict=True)]
    device = batch.tokens.device
    return TreeAttention(segments) if device.type == "cpu" else ForestAttention(segments, device)


def _labelled_rows(decoder: CausalDecoder, lora: LowRank | None, batch: TensorBatch) -> Tensor:
    """Hidden states that a target is predicted from: [R, H]."""
    attend = _attend(decoder, batch)
    return decoder.forward(batch.tokens, batch.positions, attend, lora, wanted=batch.target_rows)


def _labelled_losses(
    decoder: CausalDecoder, lora: LowRank | None, batch: TensorBatch, loss: LossSpec
) -> tuple[Tensor, int]:
    """Losses of the labelled rows [R], and how many of them are hit greedily."""
    logits = decoder.head(_labelled_rows(decoder, lora, batch)).float()
    with torch.no_grad():
        correct = int((logits.argmax(dim=-1) == batch.targets).sum())
    return row_losses(logits, batch.targets, loss), correct


def _log_likelihoods(decoder: CausalDecoder, lora: LowRank | None, batch: TensorBatch) -> Tensor:
    """log p of each document's labelled tokens together, in nats: [D]."""
    losses, _ = _labelled_losses(decoder, lora, batch, PLAIN)
    ends = torch.tensor(batch.lengths, device=losses.device).cumsum(0)
    documents = torch.searchsorted(ends, batch.target_rows, right=True)
    return -losses.new_zeros(len(batch.lengths)).index_add(0, documents, losses)
