"""A plain PyTorch training loop over a transformers model (with PEFT's adapter on it or without), as an oracle."""

from typing import Any

import torch
from torch.nn import functional

from smedje.data.batches import epoch_order
from smedje.data.encode import EncodedDataset
from smedje.training.loop import Job
from smedje.training.optimizer import rate_at


def peer_losses(model: Any, job: Job) -> list[float]:
    """The loss of each step when `model` trains the job's rows, one row a forward pass, with AdamW."""
    model.train()
    dataset = job.training.dataset
    assert isinstance(dataset, EncodedDataset)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    losses, plan = [], job.plan
    for step in range(plan.total_steps):
        epoch, place = divmod(step, plan.steps_per_epoch)
        order = epoch_order(len(job.training.indices), seed=job.seed, epoch=epoch)
        chosen = [job.training.indices[i] for i in order[place * plan.batch_size : (place + 1) * plan.batch_size]]
        total, weight = torch.zeros(()), 0.0
        for row in chosen:
            tokens, weights = (torch.tensor(list(part)) for part in dataset.example(row))
            logits = model(input_ids=tokens[None]).logits[0, :-1].float()
            per_token = functional.cross_entropy(logits, tokens[1:], reduction="none")
            total = total + (per_token * weights[1:]).sum()
            weight += float(weights[1:].sum())
        loss = total / weight
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, job.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, plan)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
