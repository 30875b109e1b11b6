"""TRL's SFTTrainer for train_cpu.py: padded, padded beside rows of like length, or packed (best-fit decreasing to 1,024
or the longest row), fp32 or bf16."""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

# Rows or packs of one forward pass, the rest by accumulation: a whole step's logits need more than 24 GB.
TOGETHER = {"padded": 4, "packed": 2}


class Clock(TrainerCallback):
    """When each optimizer step begins and ends, and the real tokens that it had by the trainer's own count."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, _: Any, state: Any, __: Any, **___: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        self.tokens.append(state.num_input_tokens_seen - sum(self.tokens))


def main() -> None:
    settings = json.loads(sys.argv[1])
    work = Path(settings["work"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows = json.loads((work / "ordered.json").read_text())
    longest = max(len(row["input_ids"]) for row in rows)
    base = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, work / "adapter", is_trainable=True)
    data = Dataset.from_list(
        [{"input_ids": r["input_ids"], "completion_mask": [int(x >= 0) for x in r["labels"]]} for r in rows]
    )
    length = max(1024, longest)
    step_tokens = sum(len(row["input_ids"]) for row in rows[: settings["batch"]])
    packing = bool(settings["packing"])
    # Packed: about as many packs a step as hold the tokens of one of our steps.
    wanted = max(1, round(step_tokens / length)) if packing else settings["batch"]
    together = min(wanted, TOGETHER["packed" if packing else "padded"])
    config = SFTConfig(
        output_dir=str(work / "trl"),
        max_steps=settings["steps"],
        per_device_train_batch_size=together,
        gradient_accumulation_steps=wanted // together,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        max_length=length,
        packing=packing,
        bf16=settings["bf16"],
        gradient_checkpointing=settings["checkpointing"],
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        shuffle_dataset=False,
        train_sampling_strategy="group_by_length" if settings.get("grouped") else "random",
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=False,
    )
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(work / "base"),
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(str(work / "trained-trl"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = {"seconds": clock.seconds, "losses": [], "tokens": clock.tokens, "peak_bytes": peak}
    Path(settings["out"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
