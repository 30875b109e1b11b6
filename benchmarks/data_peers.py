"""One peer's way of checking or loading a chat file: python data_peers.py NAME FILE BASE LINES. Prints one JSON line.

cookbook: the format checks of OpenAI's Chat_finetuning_data_prep.ipynb, as they stand there. pandas and datasets: what
their readers do with the file. trl: what SFTTrainer does with it before the first step, with the tokenizer of BASE.
LINES: read only so many, 0 for all.
"""

import json
import sys
import tempfile
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any


def cookbook(path: Path, _: Path) -> dict[str, Any]:
    """The notebook's checks; like the notebook it reads all rows first."""
    with path.open(encoding="utf-8") as file:
        dataset = [json.loads(line) for line in file]
    errors: dict[str, int] = defaultdict(int)
    for row in dataset:
        if not isinstance(row, dict):
            errors["data_type"] += 1
            continue
        messages = row.get("messages", None)
        if not messages:
            errors["missing_messages_list"] += 1
            continue
        for message in messages:
            if "role" not in message or "content" not in message:
                errors["message_missing_key"] += 1
            if any(key not in ("role", "content", "name", "function_call", "weight") for key in message):
                errors["message_unrecognized_key"] += 1
            if message.get("role", None) not in ("system", "user", "assistant", "function"):
                errors["unrecognized_role"] += 1
            content = message.get("content", None)
            if (not content and not message.get("function_call", None)) or not isinstance(content, str):
                errors["missing_content"] += 1
        if not any(message.get("role", None) == "assistant" for message in messages):
            errors["example_missing_assistant_message"] += 1
    return {"examples": len(dataset), "errors": sum(errors.values())}


def pandas(path: Path, _: Path) -> dict[str, Any]:
    """pandas.read_json of lines."""
    import pandas as pd

    return {"examples": len(pd.read_json(path, lines=True))}


def datasets(path: Path, _: Path) -> dict[str, Any]:
    """datasets.load_dataset of JSON, which every trainer built on it begins with; nothing cached before."""
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        return {"examples": len(load_dataset("json", data_files=str(path), split="train", cache_dir=cache))}


def trl(path: Path, base: Path) -> dict[str, Any]:
    """load_dataset, and SFTTrainer up to where it could train: template, tokens and truncation, with its defaults."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(base)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    # The model is beside the point here; the trainer wants one.
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
        config = SFTConfig(output_dir=cache, report_to="none", use_cpu=True, bf16=False)
        trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
        return {"examples": len(trainer.train_dataset)}


def main(name: str, path: Path, base: Path, lines: int) -> None:
    """Run one peer."""
    peer = {"cookbook": cookbook, "pandas": pandas, "datasets": datasets, "trl": trl}[name]
    if lines:
        with tempfile.TemporaryDirectory() as folder, path.open("rb") as whole:
            first = Path(folder) / "first.jsonl"
            with first.open("wb") as part:
                part.writelines(islice(whole, lines))
            print(json.dumps(peer(first, base)))
    else:
        print(json.dumps(peer(path, base)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
