"""smedje's side of train_gpu.py: the product's own loop and decoder, bf16 weights and products, fp32 master adapter."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _rows import dataset_of
from torch import Tensor

from smedje.modeling.adapter import load_adapter
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import TrainableLora
from smedje.modeling.transformer import CausalDecoder
from smedje.training.loop import Job, Rows, State, train
from smedje.training.objectives import supervised, to_tensors
from smedje.training.optimizer import make_optimizer
from smedje.training.resolve import Plan
from smedje.training.spec import ObjectiveSpec, OptimizerSpec, ScheduleSpec, WatchSpec


def adapted(folder: Path, adapter: Path, device: str, dtype: torch.dtype) -> tuple[CausalDecoder, TrainableLora]:
    """The base model and the given adapter in training."""
    decoder = load_decoder(folder, dtype=dtype, device=device)
    weights, config = load_adapter(adapter)
    last = 1 + max(slot.site.layer for slot in decoder.slots)
    lora = TrainableLora(decoder.slots, config, generator=torch.Generator().manual_seed(0), device=device)
    lora.load_weights({k: v for k, v in weights.items() if int(k.split(".layers.")[1].split(".")[0]) < last})
    return decoder, lora


def gradients(
    work: Path, size: str, rows: list[list[int]], device: str, dtype: torch.dtype, *, share: bool
) -> dict[str, Tensor]:
    """The adapter's gradients of the mean loss over all tokens, by PEFT's names."""
    from smedje.data.batches import flat_batch
    from smedje.data.forest import forest

    decoder, lora = adapted(work / "guard", work / f"{size}-adapter", device, dtype)
    data = dataset_of([{"input_ids": row, "labels": row} for row in rows])
    stream = (forest if share else flat_batch)(data, range(len(rows)))
    sums = supervised(decoder, lora, to_tensors(stream, device))
    (sums.loss / sums.weight).backward()
    found = {}
    for part in lora.parts:
        for letter in ("A", "B"):
            name = f"base_model.model.{part.slot.name}.lora_{letter}.weight"
            found[name] = getattr(part, letter).grad.float().cpu()
    return found


def job_over(steps: list[list[dict[str, list[int]]]], settings: dict[str, Any]) -> Job:
    """The job whose steps are these rows. The loop wants equal row counts a step: the smallest step's."""
    batch = min(len(step) for step in steps)
    data = dataset_of([row for step in steps for row in step[:batch]])
    plan = Plan(
        n_epochs=1,
        batch_size=batch,
        learning_rate=1e-4,
        learning_rate_multiplier=1.0,
        steps_per_epoch=len(steps),
        total_steps=len(steps),
        warmup_steps=0,
        schedule=ScheduleSpec(kind="constant"),
    )
    return Job(
        plan=plan,
        training=Rows(dataset=data, indices=range(len(data))),
        validation=None,
        objective=ObjectiveSpec(),
        watch=WatchSpec(),
        seed=0,
        max_grad_norm=1.0,
        micro_batch_tokens=32_768,
        share_prefixes=settings["share"],
        device=settings["device"],
    )


def main() -> None:
    settings = json.loads(sys.argv[1])
    work, device = Path(settings["work"]), settings["device"]
    torch.manual_seed(0)
    decoder, lora = adapted(work / settings["size"], work / f"{settings['size']}-adapter", device, torch.bfloat16)
    job = job_over(json.loads((work / "steps.json").read_text()), settings)
    state = State(decoder=decoder, lora=lora, optimizer=make_optimizer(lora.parameters(), OptimizerSpec()))
    seconds, records = [], []
    began = time.perf_counter()
    for record in train(job, state):
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        records.append(record)
        began = time.perf_counter()
    report = {
        "seconds": seconds,
        "tokens": [r.tokens for r in records],
        "losses": [r.train_loss for r in records],
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
    }
    Path(settings["out"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
