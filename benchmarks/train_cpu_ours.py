"""smedje's side of train_cpu.py: the product's own loop on given token ids; writes the peers' initial adapter."""

import json
import os
import resource
import sys
from pathlib import Path

import torch
from _rows import dataset_of

from smedje.modeling.adapter import save_adapter
from smedje.modeling.config import targets_of
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora
from smedje.modeling.products import BF16_PRODUCTS, plain
from smedje.modeling.transformer import Decoder
from smedje.services.training_spec import MICRO_BATCH_TOKENS
from smedje.training.loop import Job, Rows, State, train
from smedje.training.optimizer import make_optimizer
from smedje.training.resolve import Plan
from smedje.training.spec import ObjectiveSpec, OptimizerSpec, ScheduleSpec, WatchSpec

RANK = 16
STREAM_TOKENS = MICRO_BATCH_TOKENS[0]


def gigaflop_per_token(decoder: Decoder, rows: list[dict[str, list[int]]]) -> float:
    """Useful arithmetic for a real token with nothing shared: 4 for each frozen weight that it needs (the head only
    where there is a label), 6 for each of the adapter, causal attention forward and 2.5 times that backward."""
    shape = decoder.shape
    weights = sum((slot.stop - slot.start) * slot.inputs for slot in decoder.slots)
    adapter = sum(RANK * (slot.stop - slot.start + slot.inputs) for slot in decoder.slots)
    tokens = sum(len(row["input_ids"]) for row in rows)
    labelled = sum(label >= 0 for row in rows for label in row["labels"])
    pairs = sum(len(row["input_ids"]) ** 2 for row in rows)
    attention = 3.5 * 2 * shape.layers * shape.heads * shape.head_size * pairs
    head = 4 * labelled * shape.vocab_size * shape.hidden_size
    return ((4 * weights + 6 * adapter) * tokens + head + attention) / tokens / 1e9


@torch.no_grad()
def grow(lora: TrainableLora) -> None:
    """Give B, which begins as zeros, small numbers: else A has no gradient and the adapter no say in the first step."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in lora.weights().items():
        if ".lora_B." in name:
            tensor.normal_(0.0, 0.01, generator=generator)


def main() -> None:
    settings = json.loads(sys.argv[1])
    work = Path(settings["work"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    numbers = BF16_PRODUCTS if settings["precision"] == "bf16" else plain(torch.float32)
    decoder = load_decoder(work / "base", numbers=numbers)
    assert isinstance(decoder, Decoder)
    config = AdapterConfig(rank=RANK, alpha=32.0, targets=targets_of(decoder.slots))
    lora = TrainableLora(decoder.slots, config, generator=torch.Generator().manual_seed(0))
    if settings.get("grown"):
        grow(lora)
    save_adapter(work / "adapter", lora.weights(), config, str(work / "base"))
    rows = json.loads((work / "rows.json").read_text())
    steps, batch = settings["steps"], settings["batch"]
    dataset = dataset_of(rows)
    plan = Plan(
        n_epochs=1,
        batch_size=batch,
        learning_rate=1e-4,
        learning_rate_multiplier=1.0,
        steps_per_epoch=-(-len(rows) // batch),
        total_steps=steps,
        warmup_steps=0,
        schedule=ScheduleSpec(kind="constant"),
    )
    job = Job(
        plan=plan,
        training=Rows(dataset=dataset, indices=range(len(dataset))),
        validation=None,
        objective=ObjectiveSpec(),
        watch=WatchSpec(),
        seed=0,
        max_grad_norm=1.0,
        micro_batch_tokens=settings.get("stream_tokens", STREAM_TOKENS),
        share_prefixes=settings["share"],
        device="cpu",
        cores=int(os.environ["OMP_NUM_THREADS"]),
    )
    optimizer = make_optimizer(lora.parameters(), OptimizerSpec())
    state = State(decoder=decoder, lora=lora, optimizer=optimizer)
    records = []
    for record in train(job, state):
        records.append(record)
        if "gradients" in settings:
            found = {p.data_ptr(): p.grad for p in lora.parameters()}
            named = {name: found[tensor.data_ptr()] for name, tensor in lora.weights().items()}
            torch.save(named, Path(settings["gradients"]) / f"{record.step - 1}.pt")
    save_adapter(work / "trained", lora.weights(), config, str(work / "base"))
    report = {
        "gigaflop_per_token": gigaflop_per_token(decoder, rows),
        "seconds": [r.seconds for r in records],
        "tokens": [r.tokens for r in records],
        "losses": [r.train_loss for r in records],
        "computed": [r.computed for r in records],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    Path(settings["out"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
