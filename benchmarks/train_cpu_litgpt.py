"""litgpt's LoRA model and loss for train_cpu.py, in the loop of its finetune_lora: padded batches, fp32 or bf16.

Its adapters start from its own draw (its layout of q, k and v is another); speed and memory are compared, not losses.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import torch
from litgpt.lora import GPT, Config, lora_filter, mark_only_lora_as_trainable
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from litgpt.utils import chunked_cross_entropy

HEAD_CHUNK = 128


def loaded(work: Path, rows: list[dict[str, list[int]]], *, dtype: torch.dtype) -> GPT:
    """The base model, converted once by litgpt's own script, with a fresh adapter on every linear of its blocks."""
    folder = work / "litgpt" / "SmolLM2-135M-Instruct"
    if not folder.exists():
        folder.mkdir(parents=True)
        for path in (work / "base").iterdir():
            (folder / path.name).symlink_to(path.resolve())
        convert_hf_checkpoint(folder, dtype="float32")
    sites = {f"lora_{site}": True for site in ("query", "key", "value", "projection", "mlp")}
    config = Config.from_name(folder.name, lora_r=16, lora_alpha=32, lora_dropout=0.0, **sites)
    model = GPT(config)
    model.max_seq_length = max(len(row["input_ids"]) for row in rows)
    model.load_state_dict(torch.load(folder / "lit_model.pth", weights_only=True, mmap=True), strict=False)
    mark_only_lora_as_trainable(model)
    return model.to(dtype)


def padded(rows: list[dict[str, list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.int64), torch.full((len(rows), longest), -100)
    for number, row in enumerate(rows):
        ids[number, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        labels[number, : len(row["labels"])] = torch.tensor(row["labels"])
    return ids, labels


def main() -> None:
    settings = json.loads(sys.argv[1])
    work = Path(settings["work"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows = json.loads((work / "ordered.json").read_text())
    model = loaded(work, rows, dtype=torch.bfloat16 if settings["bf16"] else torch.float32)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    seconds, losses, tokens, size = [], [], [], settings["batch"]
    for step in range(settings["steps"]):
        chosen = rows[step * size : (step + 1) * size]
        ids, labels = padded(chosen)
        began = time.perf_counter()
        logits = model(ids, lm_head_chunk_size=HEAD_CHUNK)
        logits[-1] = logits[-1][..., :-1, :]
        loss = chunked_cross_entropy(logits, labels[..., 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
        tokens.append(sum(len(row["input_ids"]) for row in chosen))
    torch.save({n: p for n, p in model.state_dict().items() if lora_filter(n, p)}, work / "trained-litgpt.pth")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = {"seconds": seconds, "losses": losses, "tokens": tokens, "peak_bytes": peak}
    Path(settings["out"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
