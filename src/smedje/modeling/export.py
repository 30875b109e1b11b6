"""A base model with an adapter folded in, as files that other programs read: python -m smedje.modeling.export.

`merged` writes a folder that transformers loads: safetensors, config, tokenizer and chat template. `gguf` writes one
GGUF file and an Ollama Modelfile. Knows tensors and files; knows no names, jobs or servers.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from smedje.domain.catalog import FULL_WEIGHTS_FILE
from smedje.errors import InvalidRequest, SmedjeError, UnsupportedField
from smedje.modeling.adapter import load_adapter
from smedje.modeling.classifier import load_head
from smedje.modeling.export_gguf import write_gguf
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import merged_state
from smedje.objects.local_files import lent_folder

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# What the tokenizer and the generation settings of a model folder consist of.
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


def export_merged(base: Path, adapter: Path | None, out: Path, *, dtype: str = "f32") -> None:
    """Write base plus adapter into the folder `out`, which must not exist or be empty.

    W + scale * B A is summed in fp32 and rounded once to `dtype`. With a classifier's head the folder is a sequence
    classifier of transformers. Raises InvalidRequest for files that do not fit.
    """
    if out.exists() and any(out.iterdir()):
        raise InvalidRequest(f"{out} is not empty. Name a folder that does not exist.", code="target_not_empty")
    whole = adapter is not None and (adapter / FULL_WEIGHTS_FILE).exists()
    decoder = load_decoder(base, weights=adapter if whole else None)
    state = dict(decoder.export_state()) if adapter is None or whole else merged_state(decoder, *load_adapter(adapter))
    out.mkdir(parents=True, exist_ok=True)
    for name in TEXT_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    config = json.loads((base / "config.json").read_bytes())
    classifier = None if adapter is None else load_head(adapter)
    if classifier is not None:
        _make_classifier(state, config, *classifier)
    config.pop("dtype", None)
    config["torch_dtype"] = str(TYPES[dtype]).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # Fused weights are handed out as views of one storage, which a safetensors file cannot hold.
    tensors = {name: tensor.to(TYPES[dtype]).contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def export_gguf(base: Path, adapter: Path | None, out: Path, *, dtype: str = "f16", name: str = "model") -> None:
    """Write base plus adapter as the GGUF file `out`, and a Modelfile beside it.

    Raises UnsupportedField for an architecture or tokenizer that GGUF has no faithful place for.
    """
    if out.exists():
        raise InvalidRequest(f"{out} exists. Name a file that does not.", code="target_not_empty")
    if adapter is not None and load_head(adapter) is not None:
        raise UnsupportedField("GGUF has no place for a classifier's head. Export it as merged.", param="format")
    with lent_folder(out.parent, prefix=".export-") as folder:
        merged = folder / "merged"
        export_merged(base, adapter, merged)
        partial = folder / out.name
        write_gguf(merged, partial, half=dtype == "f16", name=name)
        partial.rename(out)
    (out.parent / "Modelfile").write_text(_modelfile(base, out.name), encoding="utf-8")


def _make_classifier(state: dict[str, Tensor], config: dict[str, Any], head: Tensor, labels: Sequence[str]) -> None:
    """Put the head in the place of the output layer, as transformers' ...ForSequenceClassification has it."""
    state.pop("lm_head.weight", None)
    state["score.weight"] = head
    kinds = config.get("architectures") or []
    config["architectures"] = [kind.replace("ForCausalLM", "ForSequenceClassification") for kind in kinds]
    config["id2label"] = dict(enumerate(labels))
    config["label2id"] = {name: number for number, name in enumerate(labels)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one export; what is wrong with it goes to standard error, with exit code 1."""
    parser = argparse.ArgumentParser(prog="smedje.modeling.export", description="Write a model as files.")
    parser.add_argument("format", choices=("merged", "gguf"))
    parser.add_argument("base", type=Path, help="folder of an installed base model")
    parser.add_argument("out", type=Path, help="folder, or for gguf a file, to write")
    parser.add_argument("--adapter", type=Path, help="folder of an adapter in PEFT's format, or of all weights")
    parser.add_argument("--type", choices=tuple(TYPES), default="f32", help="how numbers are stored")
    parser.add_argument("--name", default="model", help="the model's name inside the file")
    options = parser.parse_args(argv)
    try:
        if options.format == "merged":
            export_merged(options.base, options.adapter, options.out, dtype=options.type)
        else:
            export_gguf(options.base, options.adapter, options.out, dtype=options.type, name=options.name)
    except SmedjeError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


def _modelfile(base: Path, file: str) -> str:
    """What Ollama needs beside the weights: the file, and where an answer ends. The template is inside the file."""
    settings = (
        json.loads((base / "generation_config.json").read_bytes())
        if (base / "generation_config.json").is_file()
        else {}
    )
    config = json.loads((base / "config.json").read_bytes())
    ends = settings.get("eos_token_id") or config.get("eos_token_id") or []
    tokens = json.loads((base / "tokenizer.json").read_bytes())
    names = {token["id"]: token["content"] for token in tokens.get("added_tokens", [])}
    stops = [names[number] for number in (ends if isinstance(ends, list) else [ends]) if number in names]
    lines = [f"FROM ./{file}", *(f"PARAMETER stop {json.dumps(stop)}" for stop in stops)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
