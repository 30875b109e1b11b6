"""AdamW and the learning-rate schedule. Every rate is a pure function of the step, so nothing of it needs saving."""

import math
from collections.abc import Iterable

import torch

from smedje.training.resolve import Plan
from smedje.training.spec import OptimizerSpec


def rate_at(step: int, plan: Plan) -> float:
    """The learning rate of optimizer step `step` (0-based): a linear rise, then a cosine that ends just above zero."""
    if step < plan.warmup_steps:
        return plan.learning_rate * (step + 1) / plan.warmup_steps
    done = (step - plan.warmup_steps) / max(1, plan.total_steps - plan.warmup_steps)
    return plan.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def make_optimizer(parameters: Iterable[torch.nn.Parameter], spec: OptimizerSpec) -> torch.optim.AdamW:
    """AdamW over the adapter's parameters; the loop sets the rate before every step."""
    return torch.optim.AdamW(
        list(parameters),
        lr=0.0,
        betas=(spec.beta1, spec.beta2),
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        foreach=False,  # one plain loop: the same sums in the same order on every machine of a kind
    )


def set_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """Give every parameter group the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
