"""Optimizers and learning-rate schedules. Every rate is a pure function of the step, so nothing of it needs saving.

Sources: AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), Adam with L2 (Kingma and Ba 2015), SGD with momentum,
Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) and Muon (Jordan 2024) from torch; Lion (Chen et al. 2023,
arXiv:2302.06675) here. All keep their state as tensors per parameter, which is what checkpoint.py saves.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

from smedje.training.resolve import Plan
from smedje.training.spec import OptimizerSpec


def rate_at(step: int, plan: Plan) -> float:
    """The learning rate of optimizer step `step` (0-based): a linear rise, then the schedule's way down."""
    if step < plan.warmup_steps:
        return plan.learning_rate * (step + 1) / plan.warmup_steps
    done = (step - plan.warmup_steps) / max(1, plan.total_steps - plan.warmup_steps)
    match plan.schedule.kind:
        case "constant":
            return plan.learning_rate
        case "linear":
            return plan.learning_rate * (1.0 - done)
        case "polynomial":
            return plan.learning_rate * math.pow(1.0 - done, plan.schedule.power)
        case "cosine":
            return plan.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum, with decoupled weight decay (algorithm 2 of arXiv:2302.06675)."""

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, *, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient. There is no closure."""
        assert closure is None, "Lion takes no closure"
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(torch.lerp(parameter.grad, momentum, beta1).sign_(), alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - beta2)


def make_optimizer(parameters: Iterable[torch.nn.Parameter], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """The optimizer over the trained parameters; the loop sets the rate before every step.

    foreach is off everywhere: one plain loop, the same sums in the same order on every machine of a kind.
    """
    trained, betas, decay = list(parameters), (spec.beta1, spec.beta2), spec.weight_decay
    match spec.kind:
        case "adamw":
            return torch.optim.AdamW(trained, lr=0.0, betas=betas, eps=spec.eps, weight_decay=decay, foreach=False)
        case "adam":
            return torch.optim.Adam(trained, lr=0.0, betas=betas, eps=spec.eps, weight_decay=decay, foreach=False)
        case "sgd":
            return torch.optim.SGD(trained, lr=0.0, momentum=spec.momentum, weight_decay=decay, foreach=False)
        case "adafactor":
            return torch.optim.Adafactor(trained, lr=0.0, weight_decay=decay, foreach=False)
        case "lion":
            return Lion(trained, 0.0, betas=betas, weight_decay=decay)
        case "muon":
            return torch.optim.Muon(trained, lr=0.0, momentum=spec.momentum, weight_decay=decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
