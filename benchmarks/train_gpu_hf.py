"""The plain transformers + peft loop of train_gpu.py: bf16 base, padded batches, SDPA, no recomputing, fused AdamW."""

import json
import sys
import time
from pathlib import Path

import torch
from _rows import padded
from peft import PeftModel
from transformers import AutoModelForCausalLM


def batch_of(rows: list[dict[str, list[int]]], device: str) -> dict[str, torch.Tensor]:
    """One padded batch on the device; without a mask where no row is shorter, so that causal kernels serve."""
    batch = padded(rows)
    if bool(batch["attention_mask"].all()):
        del batch["attention_mask"]
    return {name: tensor.to(device) for name, tensor in batch.items()}


def main() -> None:
    settings = json.loads(sys.argv[1])
    work, device = Path(settings["work"]), settings["device"]
    base = AutoModelForCausalLM.from_pretrained(work / settings["size"], dtype=torch.bfloat16).to(device)
    model = PeftModel.from_pretrained(base, work / f"{settings['size']}-adapter", is_trainable=True)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=device == "cuda")
    seconds, losses, tokens = [], [], []
    for rows in json.loads((work / "steps.json").read_text()):
        batch = batch_of(rows, device)
        began = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
        tokens.append(sum(len(row["input_ids"]) for row in rows))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    report = {"seconds": seconds, "losses": losses, "tokens": tokens, "peak_bytes": peak}
    Path(settings["out"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
