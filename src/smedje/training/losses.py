"""Losses of labelled rows, as plain functions of logits. The oracle that any faster head is tested against.

Letters: R labelled rows, V vocabulary (or classes).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from smedje.training.spec import LossSpec


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
