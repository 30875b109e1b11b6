"""Turning chats into token ids against peers: python benchmarks/data_tokens.py --base FOLDER [--json OUT]

The same corpus of chat lines (10 MB by default; a file given with --file instead) through our encoding, as training
does it, and through `datasets.map` with the model's own tokenizer and chat template, one process and two. The ids must
be equal on the whole corpus; the peer's are cut after the last token that is trained, because its template writes a
line end after it. MB are those of the JSON file. Starting Python and reading the tokenizer is not counted, reading the
file is. About two minutes.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from _peers import measure, ours, peer_command, write_report
from data import write_files

LINE_BYTES = 1070

ENCODE = """
import hashlib, json, sys, time
from pathlib import Path
from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.data.encode import encode_file
tokenizer = load_chat_tokenizer(Path(sys.argv[2]))
began = time.perf_counter()
data = encode_file(Path(sys.argv[1]), tokenizer, max_tokens=10**9)
seconds = time.perf_counter() - began
digest = hashlib.sha256()
for row in range(len(data)):
    digest.update(data.example(row)[0].tobytes() + b"|")
print(json.dumps({"encode_seconds": seconds, "rows": len(data), "tokens": data.num_tokens, "ids": digest.hexdigest()}))
"""

# tokenizers alone, on the text of the lines as they stand: how fast the library can be on this machine.
LIMIT = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2] + "/tokenizer.json")
tokenizer.no_truncation()
texts = open(sys.argv[1], encoding="utf-8").readlines()
began = time.perf_counter()
for first in range(0, len(texts), 1000):
    tokenizer.encode_batch_fast(texts[first : first + 1000], add_special_tokens=False)
print(json.dumps({"encode_seconds": time.perf_counter() - began}))
"""


def engines(path: Path, base: Path) -> dict[str, list[str]]:
    """What is run for each engine."""
    return {
        "smedje": ours(ENCODE, str(path), str(base)),
        "datasets.map": peer_command("data_tokens_peer.py", str(path), str(base), "1"),
        "datasets.map, 2 processes": peer_command("data_tokens_peer.py", str(path), str(base), "2"),
        "tokenizers alone, all cores": ours(LIMIT, str(path), str(base)),
    }


def summary(rounds: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """The last answer with the median of the encoding's seconds and the rate."""
    if any("failed" in one for one in rounds):
        return rounds[-1]
    seconds = statistics.median(one["encode_seconds"] for one in rounds)
    return {
        **rounds[-1],
        "encode_seconds": round(seconds, 2),
        "mb_per_second": round(size / 1e6 / seconds, 2),
        "peak_mb": max(one["peak_mb"] for one in rounds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="an installed base model's folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--megabytes", type=int, default=10)
    parser.add_argument("--file", type=Path, help="a chat file without faults instead of the synthetic corpus")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = given.file
        if path is None:
            path = write_files(Path(temporary), given.megabytes * 10**6 // LINE_BYTES, 0)[1]
        size = path.stat().st_size
        rounds: dict[str, list[dict[str, Any]]] = {}
        for _ in range(given.rounds):
            for name, command in engines(path, given.base).items():
                rounds.setdefault(name, []).append(measure(command))
        found = {name: summary(all_rounds, size) for name, all_rounds in rounds.items()}
    ids = {name: one["ids"] for name, one in found.items() if "ids" in one}
    report = {
        "machine": {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)},
        "base": given.base.name,
        "bytes": size,
        "engines": found,
        "ids_equal": len(ids) == 3 and len(set(ids.values())) == 1,
    }
    write_report(report, given.json)
    return 0 if report["ids_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
