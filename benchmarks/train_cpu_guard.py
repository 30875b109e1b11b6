"""The guard of train_cpu.py: our losses and adapter gradients against the plain transformers and PEFT loop."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from train_cpu_rows import guard_rows, write_rows

STEPS, BATCH = 20, 5
LARGEST_LOSS_DIFFERENCE, SMALLEST_COSINE, BF16_FACTOR = 1e-4, 0.99999, 1.2
LARGEST_BF16_LOSS_DIFFERENCE = 0.02


def checked(run: Callable[..., dict[str, Any]], work: Path, *, others: Sequence[str] = ()) -> dict[str, Any]:
    """20 steps of ours in fp32 (with and without sharing) and bf16, beside the plain loop in fp32 and bf16.

    The adapter is one that has grown: both of its factors have a gradient from the first step on. fp32: the largest
    difference of a step's loss and the smallest cosine of a step's clipped adapter gradient, both against the plain
    fp32 loop. bf16: the relative error of the first step's gradient, ours and the plain loop's.
    Of the `others`, bf16 engines that do as they please with the rows, only that one step on the first step's rows has
    the loss of the plain fp32 loop: they have read the same rows, labels, base model and adapter.
    """
    write_rows(work, guard_rows(STEPS * BATCH))
    found = {}
    for engine in ("smedje", "smedje-unshared", "smedje-bf16", "hf-loop", "hf-loop-bf16", *others):
        (work / engine).mkdir()
        # Of bf16 the first step is looked at alone: afterwards each trains another adapter.
        steps = 1 if engine.endswith("bf16") else STEPS
        found[engine] = run(engine, work, steps=steps, batch=BATCH, gradients=str(work / engine), grown=True)
    errors = {engine: result["error"] for engine, result in found.items() if "error" in result}
    if errors:
        return {"passed": False, "errors": errors}
    report: dict[str, Any] = {}
    for engine in ("smedje", "smedje-unshared"):
        pairs = zip(found[engine]["losses"], found["hf-loop"]["losses"], strict=True)
        report[engine] = {
            "largest_loss_difference": max(abs(a - b) for a, b in pairs),
            "smallest_gradient_cosine": min(_cosine(work, engine, step) for step in range(STEPS)),
        }
    ours, theirs = (_error(work, engine) for engine in ("smedje-bf16", "hf-loop-bf16"))
    report["bf16_gradient_error"] = {"smedje": ours, "transformers and peft": theirs}
    truth = found["hf-loop"]["losses"][0]
    for engine in others:
        report[engine] = {"first_loss_difference": abs(found[engine]["losses"][0] - truth)}
    report["passed"] = (
        ours <= BF16_FACTOR * theirs
        and all(
            report[engine]["largest_loss_difference"] <= LARGEST_LOSS_DIFFERENCE
            and report[engine]["smallest_gradient_cosine"] >= SMALLEST_COSINE
            for engine in ("smedje", "smedje-unshared")
        )
        and all(report[engine]["first_loss_difference"] <= LARGEST_BF16_LOSS_DIFFERENCE for engine in others)
    )
    return report


def _gradient(work: Path, engine: str, step: int) -> torch.Tensor:
    """All adapter gradients of a step, in the order of their names."""
    named = torch.load(work / engine / f"{step}.pt", weights_only=True)
    return torch.cat([named[name].flatten().double() for name in sorted(named)])


def _cosine(work: Path, engine: str, step: int) -> float:
    ours, theirs = _gradient(work, engine, step), _gradient(work, "hf-loop", step)
    return float(ours @ theirs / (ours.norm() * theirs.norm()))


def _error(work: Path, engine: str) -> float:
    truth = _gradient(work, "hf-loop", 0)
    return float((_gradient(work, engine, 0) - truth).norm() / truth.norm())
