"""What train_gpu.py needs before any speed: the random model, the device's ceiling, and the guard on gradients."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The products of a Phi-3-mini layer [out, in]: q|k|v, o, gate|up, down.
PHI3_PRODUCTS = ((9216, 3072), (3072, 3072), (16_384, 3072), (3072, 8192))
RANK, ALPHA = 16, 32


def make_model(work: Path, size: str, sizes: dict[str, int], device: str) -> dict[str, Any]:
    """A Llama with random bf16 weights, a word-level tokenizer beside it, and one initial adapter for all engines."""
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = work / size
    tied = size == "smollm2"
    config = LlamaConfig(**sizes, max_position_embeddings=8192, tie_word_embeddings=tied, dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(sizes["vocab_size"] - 2)} | {"<pad>": sizes["vocab_size"] - 2}
    words["</s>"] = sizes["vocab_size"] - 1
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zeros would hide A's gradient from the guard
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.save_pretrained(work / f"{size}-adapter")
    return {"parameters": sum(p.numel() for p in model.parameters())}


def ceiling(device: str, *, tiny: bool) -> dict[str, float]:
    """TFLOP/s of the four products over 16,384 rows of random bf16, the median of ten after three."""
    rows, found = 64 if tiny else 16_384, {}
    for outs, ins in PHI3_PRODUCTS:
        x, w = (torch.randn(n, ins, device=device, dtype=torch.bfloat16) for n in (rows, outs))
        seconds = []
        for _ in range(13):
            synchronize(device)
            began = time.perf_counter()
            torch.nn.functional.linear(x, w)
            synchronize(device)
            seconds.append(time.perf_counter() - began)
        found[f"{outs}x{ins}"] = round(2 * rows * outs * ins / sorted(seconds[3:])[5] / 1e12, 2)
    return found


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def guard(work: Path, size: str, device: str) -> dict[str, float]:
    """Relative errors of bf16 gradients against fp32 on one batch of ragged rows, ours and Hugging Face's.

    Four layers at most: errors grow alike with depth, and fp32 fits. The limit is a ratio of 1.2.
    """
    from train_gpu_ours import gradients as ours
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(work / size, dtype=torch.bfloat16)
    model.model.layers = model.model.layers[:4]
    model.config.num_hidden_layers = len(model.model.layers)
    model.save_pretrained(work / "guard")
    draw = torch.Generator().manual_seed(3)
    rows = [
        torch.randint(10, model.config.vocab_size, (int(n),), generator=draw).tolist()
        for n in torch.randint(16, 200, (12,), generator=draw)
    ]
    del model
    exact = ours(work, size, rows, device, torch.float32, share=False)
    found = {
        "smedje": error(ours(work, size, rows, device, torch.bfloat16, share=False), exact),
        "smedje-shared": error(ours(work, size, rows, device, torch.bfloat16, share=True), exact),
        "hf-bf16": error(theirs(work, size, rows, device, torch.bfloat16), exact),
        "hf-fp32": error(theirs(work, size, rows, device, torch.float32), exact),
    }
    return {**found, "ratio": round(found["smedje"] / found["hf-bf16"], 3), "limit": 1.2}


def theirs(work: Path, size: str, rows: list[list[int]], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Hugging Face's gradients of the adapter, a row at a time: no padding can blur them."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(work / "guard", dtype=dtype).to(device)
    model = PeftModel.from_pretrained(base, work / f"{size}-adapter", is_trainable=True)
    total = sum(len(row) - 1 for row in rows)
    for row in rows:
        ids = torch.tensor([row], device=device)
        (model(input_ids=ids, labels=ids).loss * (len(row) - 1) / total).backward()
    return {
        name.replace(".default", ""): p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None
    }


def error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The length of the difference over the length of the exact gradient, all tensors as one vector."""
    assert found.keys() == exact.keys(), "both sides name the same tensors"
    apart = sum(float((found[name] - exact[name]).square().sum()) for name in exact)
    return float((apart / sum(float(exact[name].square().sum()) for name in exact)) ** 0.5)


def main() -> None:
    settings = json.loads(sys.argv[1])
    work, device = Path(settings["work"]), settings["device"]
    if settings.get("guard"):
        found: dict[str, Any] = guard(work, settings["guard"], device)
    elif settings["make"]:
        found = make_model(work, settings["make"], settings["sizes"], device)
    else:
        found = ceiling(device, tiny=settings["tiny"])
    Path(settings["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
