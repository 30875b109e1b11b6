"""The peer of data_tokens.py: python data_tokens_peer.py FILE BASE PROCESSES. Prints one JSON line.

`datasets.map` over the rows with the model's tokenizer and chat template, as trainers built on it do; nothing cached.
"""

import hashlib
import json
import sys
import tempfile
import time
from array import array
from typing import Any

from datasets import load_dataset
from transformers import AutoTokenizer


def main(path: str, base: str, processes: int) -> None:
    """Load, map, and tell seconds and the digest of the ids up to the last token that ends a turn."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    end = tokenizer.convert_tokens_to_ids(tokenizer.eos_token)

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in rows["messages"]]
        return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}

    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        rows = load_dataset("json", data_files=path, split="train", cache_dir=cache)
        encoded = rows.map(
            encode, batched=True, remove_columns=rows.column_names, num_proc=processes if processes > 1 else None
        )
        seconds = time.perf_counter() - began
        digest, tokens = hashlib.sha256(), 0
        for row in encoded:
            ids = row["input_ids"]
            ids = ids[: len(ids) - ids[::-1].index(end)]
            tokens += len(ids)
            digest.update(array("I", ids).tobytes() + b"|")
    told = {"encode_seconds": seconds, "rows": len(encoded), "tokens": tokens, "ids": digest.hexdigest()}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
