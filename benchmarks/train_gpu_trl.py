"""TRL's SFTTrainer for train_gpu.py, plain or under Unsloth: as it comes, or packed and tuned."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class Clock(TrainerCallback):
    """When each optimizer step begins and ends, the device's work included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now() - self._began)


def now() -> float:
    """The time once the device is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def adapted_model(work: Path, size: str, settings: dict[str, Any], length: int) -> Any:
    """The base model with an adapter of rank 16 on all linears."""
    if settings["unsloth"]:
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            str(work / size), max_seq_length=length, dtype=torch.bfloat16, load_in_4bit=False
        )
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        return FastLanguageModel.get_peft_model(
            model, r=16, lora_alpha=32, lora_dropout=0, target_modules=names, use_gradient_checkpointing=False
        )
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(work / size, dtype=torch.bfloat16).to(settings["device"])
    return PeftModel.from_pretrained(base, work / f"{size}-adapter", is_trainable=True)


def main() -> None:
    settings = json.loads(sys.argv[1])
    if settings["unsloth"]:
        import unsloth  # noqa: F401 - it must come before TRL
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    work, size = Path(settings["work"]), settings["size"]
    steps = json.loads((work / "steps.json").read_text())
    rows = [row for step in steps for row in step]
    total = sum(len(row["input_ids"]) for row in rows) / len(steps)
    length = max(4096 if settings["packing"] else 0, max(len(row["input_ids"]) for row in rows))
    batch = max(1, round(total / length)) if settings["packing"] else min(len(step) for step in steps)
    data = [{"input_ids": r["input_ids"], "completion_mask": [int(x >= 0) for x in r["labels"]]} for r in rows]
    config = SFTConfig(
        output_dir=str(work / "trl"),
        max_steps=settings["steps"],
        per_device_train_batch_size=batch,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        max_length=length,
        packing=settings["packing"],
        bf16=True,
        gradient_checkpointing=settings["checkpointing"],
        use_liger_kernel=settings["liger"],
        use_cpu=settings["device"] == "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        shuffle_dataset=False,
    )
    clock = Clock()
    trainer = SFTTrainer(
        model=adapted_model(work, size, settings, length),
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(work / size),
        callbacks=[clock],
    )
    trainer.train()
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    # Packs are counted at their mean number of real tokens, as best fit mixes rows.
    step_tokens = batch * sum(lengths) / len(lengths)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    report = {"seconds": clock.seconds, "losses": [], "tokens": [step_tokens] * len(clock.seconds), "peak_bytes": peak}
    Path(settings["out"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
