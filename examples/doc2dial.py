"""Fetch real support dialogues (doc2dial) and write them as chat files ready for fine-tuning. Standard library only.

    python examples/doc2dial.py --out data/doc2dial
    python examples/doc2dial.py --out data/doc2dial-grounded --with-document --rows dialogues

Where the data comes from: the test dialogues of doc2dial (Feng et al., EMNLP 2020, https://doc2dial.github.io), as
arranged for ChatRAG-Bench, lie inside the PyPI package nvidia-lm-eval 26.3. The package is downloaded through pip, is
not installed, and its SHA-256 must match.

Licence: the dialogues and documents are upstream's, under Creative Commons Attribution 3.0 (CC BY 3.0); the package
does not repeat that. A NOTICE with the attribution is written beside the output: keep it with the files.

What is written: train.jsonl and validation.jsonl. The package holds 3,939 samples of 661 dialogues, and the samples of
one dialogue are prefixes of each other, so the split is by dialogue: a validation dialogue has no turn in training.
  --rows turns      one row a sample; earlier answers carry `"weight": 0`, so every answer is trained on once (default)
  --rows dialogues  one row a dialogue, everything the agent says is trained on; a quarter of the tokens
  --with-document   put the passages that the answers rest on into the system message; about three times the tokens
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

REQUIREMENT = "nvidia-lm-eval==26.3"
WHEEL = "nvidia_lm_eval-26.3-py3-none-any.whl"
SHA256 = "7929ccc1c584b8b498a7d160c0c919949c77ce3711a6f0bda8c10440a4c7d89a"
SAMPLES = (
    "lm_eval/tasks/chatrag_bench/dataset/nvidia_dragon_multiturn_retrieved.jsonl"  # one JSON array, whatever its name
)
DOCUMENTS = "lm_eval/tasks/chatrag_bench/dataset/documents.json"

AGENCIES = {
    "dmv": "the Department of Motor Vehicles (licences, registration, tickets)",
    "ssa": "the Social Security Administration (benefits, cards, credits)",
    "studentaid": "Federal Student Aid (loans, grants, repayment)",
    "va": "the Department of Veterans Affairs (health care, pensions, housing)",
}

NOTICE = f"""These files are derived from doc2dial.

  "doc2dial: A Goal-Oriented Document-Grounded Dialogue Dataset"
  Song Feng, Hui Wan, Chulaka Gunasekara, Siva Patel, Sachindra Joshi and Luis Lastras, EMNLP 2020
  https://doc2dial.github.io

Licence: Creative Commons Attribution 3.0 (CC BY 3.0), https://creativecommons.org/licenses/by/3.0/
Taken from: {REQUIREMENT} on PyPI (ChatRAG-Bench arrangement by NVIDIA), {WHEEL}, SHA-256 {SHA256}

Changes: converted to chat JSONL with a system message; messages of one speaker in a row joined; split by dialogue.
"""

Sample = dict[str, Any]  # messages, answers, document, ground_truth_ctx, ctxs
Message = dict[str, Any]  # role, content and, on earlier answers, weight


def fetch_wheel(cache: Path) -> Path:
    """The package file in `cache`, downloaded if it is not there; exits if its SHA-256 is not the pinned one."""
    wheel = cache / WHEEL
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
            if subprocess.run([*pip, "--dest", folder, REQUIREMENT], check=False).returncode != 0:
                sys.exit(
                    f"pip could not download {REQUIREMENT}. Check the network, or put {WHEEL} into {cache} yourself."
                )
            (Path(folder) / WHEEL).replace(wheel)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{wheel} has SHA-256 {found}, expected {SHA256}. Delete the file and run again.")
    return wheel


def read_package(wheel: Path) -> tuple[list[Sample], dict[str, list[str]]]:
    """The samples in their order, and for each agency its passages."""
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read(SAMPLES)), json.loads(archive.read(DOCUMENTS))


def group_by_dialogue(samples: list[Sample]) -> list[list[Sample]]:
    """One list a dialogue. Its samples lie next to each other, each beginning with all messages of the one before."""
    dialogues: list[list[Sample]] = []
    for sample in samples:
        earlier = dialogues[-1][-1]["messages"] if dialogues else []
        if earlier and sample["messages"][: len(earlier)] == earlier:
            dialogues[-1].append(sample)
        else:
            dialogues.append([sample])
    return dialogues


def join_turns(messages: list[Message]) -> list[Message]:
    """Two messages of one speaker in a row become one, so that user and assistant alternate."""
    joined: list[Message] = []
    for message in messages:
        text = " ".join(message["content"].split())
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1]["content"] += " " + text
        else:
            joined.append({"role": message["role"], "content": text})
    return joined


def system_message(samples: list[Sample], documents: dict[str, list[str]] | None) -> Message:
    """Names the agency; with documents, adds the passages these samples rest on, each once, in order of use."""
    agency = samples[0]["document"]
    text = f"You are a support agent of {AGENCIES[agency]}. Answer briefly, and ask back when the case is not clear."
    if documents is not None:
        used = dict.fromkeys(sample["ground_truth_ctx"] for sample in samples)
        passages = [" ".join(documents[agency][number].split()) for number in used]
        text += " Use only this document:\n\n" + "\n\n".join(passages)
    return {"role": "system", "content": text}


def rows_of_turns(dialogue: list[Sample], documents: dict[str, list[str]] | None) -> list[list[Message]]:
    """One row a sample: the dialogue so far, and the answer to learn."""
    rows = []
    for sample in dialogue:
        history = join_turns(sample["messages"])
        for message in history:
            if message["role"] == "assistant":
                message["weight"] = 0
        answer = {"role": "assistant", "content": " ".join(sample["answers"][0].split())}
        rows.append([system_message([sample], documents), *history, answer])
    return rows


def row_of_dialogue(dialogue: list[Sample], documents: dict[str, list[str]] | None) -> list[Message]:
    """The whole dialogue: its longest sample with the answer."""
    last = dialogue[-1]
    turns = join_turns([*last["messages"], {"role": "assistant", "content": last["answers"][0]}])
    return [system_message(dialogue, documents), *turns]


def split(dialogues: list[list[Sample]], *, share: float, seed: int) -> tuple[list[list[Sample]], list[list[Sample]]]:
    """Training and validation dialogues. Dialogues that open with the same words go to the same side."""
    openings = sorted({dialogue[0]["messages"][0]["content"] for dialogue in dialogues})
    chosen = set(random.Random(seed).sample(openings, round(share * len(openings))))
    train = [dialogue for dialogue in dialogues if dialogue[0]["messages"][0]["content"] not in chosen]
    validation = [dialogue for dialogue in dialogues if dialogue[0]["messages"][0]["content"] in chosen]
    return train, validation


def write_rows(path: Path, rows: list[list[Message]]) -> None:
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files and the NOTICE")
    parser.add_argument("--rows", choices=["turns", "dialogues"], default="turns")
    parser.add_argument("--with-document", action="store_true")
    parser.add_argument("--validation-share", type=float, default=0.1, help="share of the dialogues (default 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of the split (default 0)")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "smedje-examples")
    options = parser.parse_args()
    if not 0 < options.validation_share < 1:
        parser.error(f"--validation-share is {options.validation_share}; it must lie between 0 and 1")

    samples, all_documents = read_package(fetch_wheel(options.cache))
    documents = all_documents if options.with_document else None
    sides = split(group_by_dialogue(samples), share=options.validation_share, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "NOTICE").write_text(NOTICE, encoding="utf-8")
    for name, dialogues in zip(("train.jsonl", "validation.jsonl"), sides, strict=True):
        if options.rows == "turns":
            rows = [row for dialogue in dialogues for row in rows_of_turns(dialogue, documents)]
        else:
            rows = [row_of_dialogue(dialogue, documents) for dialogue in dialogues]
        write_rows(options.out / name, rows)
        print(f"{options.out / name}: {len(rows):,} rows of {len(dialogues)} dialogues")
    print(f"{options.out / 'NOTICE'}: CC BY 3.0, keep it with the files")


if __name__ == "__main__":
    main()
