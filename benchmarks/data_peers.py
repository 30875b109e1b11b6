"""One peer's way of checking or loading a chat file: python data_peers.py NAME FILE. Prints one JSON line.

cookbook: the format checks of OpenAI's Chat_finetuning_data_prep.ipynb, as they stand there. pandas and datasets: what
their readers do with the file.
"""

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any


def cookbook(path: Path) -> dict[str, Any]:
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


def pandas(path: Path) -> dict[str, Any]:
    """pandas.read_json of lines."""
    import pandas as pd

    return {"examples": len(pd.read_json(path, lines=True))}


def datasets(path: Path) -> dict[str, Any]:
    """datasets.load_dataset of JSON, which every trainer built on it begins with; nothing cached before."""
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        return {"examples": len(load_dataset("json", data_files=str(path), split="train", cache_dir=cache))}


if __name__ == "__main__":
    peers = {"cookbook": cookbook, "pandas": pandas, "datasets": datasets}
    print(json.dumps(peers[sys.argv[1]](Path(sys.argv[2]))))
