"""The plain transformers + peft loop of train_cpu.py, padded batches, fp32 or all in bf16. The guard's reference."""

import json
import os
import resource
import sys
import time
from pathlib import Path

import torch
from _rows import padded
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main() -> None:
    settings = json.loads(sys.argv[1])
    work = Path(settings["work"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dtype = torch.bfloat16 if settings["bf16"] else torch.float32
    base = AutoModelForCausalLM.from_pretrained(work / "base", dtype=dtype)
    model = PeftModel.from_pretrained(base, work / "adapter", is_trainable=True)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    rows = json.loads((work / "ordered.json").read_text())
    seconds, losses, tokens = [], [], []
    for step in range(settings["steps"]):
        batch = padded(rows[step * settings["batch"] : (step + 1) * settings["batch"]])
        began = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        if "gradients" in settings:
            named = {n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.requires_grad}
            torch.save(named, Path(settings["gradients"]) / f"{step}.pt")
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
        tokens.append(int(batch["attention_mask"].sum()))
    model.save_pretrained(work / "trained-hf")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(settings["out"]).write_text(
        json.dumps({"seconds": seconds, "losses": losses, "tokens": tokens, "peak_bytes": peak})
    )


if __name__ == "__main__":
    main()
