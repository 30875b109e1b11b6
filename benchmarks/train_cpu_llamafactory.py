"""LLaMA-Factory's own training run for train_cpu.py, in bf16: padded in our order, padded beside rows of like length,
or packed by its own processor with attention kept inside each row (its `neat_packing`).

It reads the rows as data tokenized before and goes on with the initial adapter; its `pure_bf16` is refused on a CPU.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llamafactory.data.processor import PackedSupervisedDatasetProcessor
from llamafactory.hparams import DataArguments
from llamafactory.train.tuner import run_exp
from transformers import AutoTokenizer, TrainerCallback

# Rows or packs of one forward pass, the rest by accumulation: the quickest of 2, 4 and 16 rows (16 need more than
# 20 GB) and of 1 and 2 packs.
TOGETHER = {"ordered": 4, "grouped": 4, "packed": 2}
MULTIPLE = 8  # its collator pads to this, but a pack's positions are not padded with it


class Clock(TrainerCallback):
    """When each optimizer step begins and ends, and what the model was given in it: real tokens, and their loss.

    The trainer's own count takes a pack's mask for a count of tokens, so tokens are counted where they enter the model:
    those that are not padding, which no row holds.
    """

    def __init__(self, *, padding: int) -> None:
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.losses: list[float] = []
        self._padding = padding
        self._began = 0.0

    def on_train_begin(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        model.register_forward_hook(self._seen, with_kwargs=True)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.tokens.append(0)
        self.losses.append(0.0)
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)

    def _seen(self, _: torch.nn.Module, __: Any, given: dict[str, Any], output: Any) -> None:
        self.tokens[-1] += int((given["input_ids"] != self._padding).sum())
        # Of each forward pass its share of the step's mean.
        self.losses[-1] += float(output.loss.detach())


class GivenRows(PackedSupervisedDatasetProcessor):
    """Its packing, of rows that are token ids already."""

    def _encode_data_example(self, prompt: Any, response: Any, **_: Any) -> tuple[list[int], list[int]]:
        return prompt[0], response[0]


def packs(rows: list[dict[str, list[int]]], tokenizer: Any) -> list[dict[str, Any]]:
    """Rows packed by LLaMA-Factory to 1,024 tokens or the longest row."""
    longest = max(len(row["input_ids"]) for row in rows)
    length = max(1024, -(-(longest + 1) // MULTIPLE) * MULTIPLE)
    arguments = DataArguments(template="empty", cutoff_len=length, packing=True, neat_packing=True)
    none = [None] * len(rows)
    columns = dict.fromkeys(("_system", "_tools", "_images", "_videos", "_audios"), none)
    columns["_prompt"] = [[row["input_ids"]] for row in rows]
    columns["_response"] = [[row["labels"]] for row in rows]
    processor = GivenRows(template=None, tokenizer=tokenizer, processor=None, data_args=arguments)
    packed = processor.preprocess_dataset(columns)
    used = ("input_ids", "attention_mask", "position_ids", "labels")
    return [dict(zip(used, row, strict=True)) for row in zip(*(packed[name] for name in used), strict=True)]


def main() -> None:
    settings = json.loads(sys.argv[1])
    work, form, steps = Path(settings["work"]), settings["form"], settings["steps"]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows = json.loads((work / "ordered.json").read_text())[: steps * settings["batch"]]
    tokenizer = AutoTokenizer.from_pretrained(work / "base")
    if form == "packed":
        examples = packs(rows, tokenizer)
        wanted = max(1, round(len(examples) / steps))
    else:
        examples = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        wanted = settings["batch"]
    together = min(wanted, TOGETHER[form])
    # A run of one step takes every row.
    passes = -(-wanted // together) if steps == 1 else wanted // together
    data = work / f"llamafactory-{form}"
    Dataset.from_list(examples).save_to_disk(str(data))
    clock = Clock(padding=tokenizer.pad_token_id)
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "model_name_or_path": str(work / "base"),
            "adapter_name_or_path": str(work / "adapter"),
            "dataset": "given",  # the name is asked for; the rows are those of tokenized_path
            "tokenized_path": str(data),
            "template": "empty",
            "neat_packing": form == "packed",
            "flash_attn": "sdpa",
            "disable_gradient_checkpointing": True,
            "disable_shuffling": form == "ordered",
            "train_sampling_strategy": "group_by_length" if form == "grouped" else "random",
            "per_device_train_batch_size": together,
            "gradient_accumulation_steps": passes,
            "max_steps": steps,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant",
            "bf16": True,
            "use_cpu": True,
            "output_dir": str(work / "trained-llamafactory"),
            "overwrite_output_dir": True,  # by an earlier round
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "dataloader_pin_memory": False,
        },
        callbacks=[clock],
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = {"seconds": clock.seconds, "losses": clock.losses, "tokens": clock.tokens, "peak_bytes": peak}
    Path(settings["out"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
