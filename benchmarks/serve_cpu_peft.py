"""transformers and peft generating for a whole batch, for benchmarks/serve_cpu.py: runs in an environment of its own.

python benchmarks/serve_cpu_peft.py '{"base": FOLDER, "adapters": [FOLDER...], "batch": 16, "prompts": [[...]], ...}'
prints JSON: aggregate tokens a second of the batch, base model and mixed adapters (peft's `adapter_names`), and memory.
The batch starts and ends together, which favours it: nobody waits for a newcomer's prompt.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(asked["base"], dtype=torch.float32).eval()
    told: dict[str, Any] = {"base": {str(n): rate(model, asked, n) for n in asked["batches"]}}
    tuned = PeftModel.from_pretrained(model, asked["adapters"][0], adapter_name="0").eval()
    for number, folder in enumerate(asked["adapters"][1:], start=1):
        tuned.load_adapter(folder, adapter_name=str(number))
    names = [str(number % len(asked["adapters"])) for number in range(max(asked["batches"]))]
    told["adapters"] = {str(n): rate(tuned, asked, n, adapter_names=names[:n]) for n in asked["batches"]}
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({**told, "memory_mb": int(peak.split()[1]) // 1024}))


@torch.inference_mode()
def rate(model: Any, asked: dict[str, Any], batch: int, **more: Any) -> float:
    """Tokens a second of a batch, prompts included in the time."""
    tokens = torch.tensor(asked["prompts"][:batch])
    settings = {"do_sample": False, "min_new_tokens": asked["tokens"], "max_new_tokens": asked["tokens"]}
    began = time.perf_counter()
    out = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), pad_token_id=0, **settings, **more)
    return round((out.numel() - tokens.numel()) / (time.perf_counter() - began), 1)


if __name__ == "__main__":
    main()
