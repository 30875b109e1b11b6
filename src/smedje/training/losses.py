"""Losses of labelled rows: as plain functions of logits, and a head that never keeps the logits.

`row_losses` is the oracle; `summed_cross_entropy` gives the same sum and gradient a chunk of rows at a time.
Letters: R labelled rows, H hidden size, V vocabulary (or classes).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smedje.training.spec import LossSpec

_LOG2E = math.log2(math.e)  # PyTorch's exp2 takes a quarter of its exp's time


def row_losses(logits: Tensor, targets: Tensor, spec: LossSpec) -> Tensor:
    """The loss of each row in nats: logits [R, V] (fp32), targets [R] (int64) -> [R].

    cross_entropy: -log p(target). label_smoothing: the target shares `smoothing` evenly with all V classes (Szegedy et
    al. 2016, arXiv:1512.00567). focal: (1 - p)^gamma times the cross-entropy, which turns away from rows that are
    already known (Lin et al. 2017, arXiv:1708.02002).
    """
    if spec.kind == "label_smoothing":
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=spec.smoothing)
    losses = F.cross_entropy(logits, targets, reduction="none")
    if spec.kind == "focal":
        # Clamped above zero: with gamma below 1 the power has no finite slope at a certain row.
        return (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny).pow(spec.gamma) * losses
    return losses


_CHUNK = 256  # rows whose logits are in memory at once on the CPU; fewer lay out the head's weight more often
_LARGE_CHUNK = 1024  # and elsewhere, where calls cost more than memory
_CACHED = 2**18  # logits worked on at once: what is done with them stays in a core's cache


def summed_cross_entropy(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, int]:
    """The weighted sum of the rows' -log p(target) in nats, a scalar with a gradient, and how many rows are hit.

    hidden [R, H], targets and weights [R]; head: [r, H] -> [r, V], whose own backward pass must not need its result,
    for that is overwritten. Where a gradient is wanted, the one of `hidden` is found at once and kept in place of the
    logits, which are V / H times as large.
    """
    wanted = hidden.requires_grad and torch.is_grad_enabled()
    loss, correct = _SummedCrossEntropy.apply(hidden, head, targets, weights, wanted)  # type: ignore[no-untyped-call]
    return loss, int(correct)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, weights: Tensor, wanted: bool
    ) -> tuple[Tensor, Tensor]:
        loss, correct = torch.zeros((), device=hidden.device), torch.zeros((), dtype=torch.int64, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if wanted else None
        chunk = _CHUNK if hidden.device.type == "cpu" else _LARGE_CHUNK
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            some = hidden[rows].detach()
            with torch.set_grad_enabled(wanted):
                raw = head(some.requires_grad_(wanted))
            losses, hits = _to_gradient(raw.detach(), targets[rows], weights[rows])
            loss += losses @ weights[rows]
            correct += hits
            if d_hidden is not None:
                (d_hidden[rows],) = torch.autograd.grad(raw, some, raw.detach())
        ctx.save_for_backward(*([] if d_hidden is None else [d_hidden]))
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (d_hidden,) = ctx.saved_tensors
        return d_hidden * grads[0], None, None, None, None


def _to_gradient(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The rows' losses [r] and the number of hits; the logits [r, V] become the gradient of the weighted losses."""
    count, classes = logits.shape
    step = max(1, _CACHED // classes) if logits.device.type == "cpu" else count
    losses, hits = weights.new_empty(count), torch.zeros((), dtype=torch.int64, device=logits.device)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        p, picked, weight = logits[rows].float(), targets[rows, None], weights[rows, None]
        most, hit = p.amax(-1, keepdim=True), p.gather(1, picked)
        total = p.sub_(most).mul_(_LOG2E).exp2_().sum(-1, keepdim=True)
        losses[rows] = (total.log() + most - hit)[:, 0]
        hits += (hit == most).sum()
        p.mul_(weight / total).scatter_add_(1, picked, -weight)
        if p.dtype != logits.dtype:
            logits[rows] = p
    return losses, hits
