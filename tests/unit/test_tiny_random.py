"""Tiny random models load wherever the real architecture does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from smedje.modeling.folder import file_sha256
from smedje.modeling.tiny_random import write_tiny_llama, write_tiny_phi3

KINDS = ("llama", "llama-untied", "phi3", "phi3-longrope")


def write(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """A tiny model of this kind in `folder`."""
    if kind.startswith("llama"):
        write_tiny_llama(folder, seed=seed, tied=kind == "llama")
    else:
        write_tiny_phi3(folder, seed=seed, longrope=kind.endswith("longrope"))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_every_weight(tmp_path: Path, kind: str) -> None:
    """No weight is missing, left over or of another shape, and the logits tell positions apart."""
    torch.set_num_threads(1)
    folder = write(kind, tmp_path / kind)
    model: Any
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = AutoTokenizer.from_pretrained(folder)("Hello, wörld", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(ids).logits[0]
    assert torch.isfinite(logits).all()
    assert (logits[1:] - logits[:-1]).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_chat_template_and_stop_tokens(tmp_path: Path, kind: str) -> None:
    """The tokenizer renders a conversation, keeps special tokens whole and gives the text back."""
    tokenizer: Any = AutoTokenizer.from_pretrained(write(kind, tmp_path / kind))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hæ 🎉"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(prompt).input_ids
    assert tokenizer.decode(ids) == prompt
    # Two role tokens, an end token, and one token for every other byte.
    special = {"llama": ("<|im_start|>", "<|im_end|>"), "phi3": ("<|user|>", "<|end|>", "<|assistant|>")}[kind]
    plain = prompt
    for token in special:
        plain = plain.replace(token, "")
    assert len(ids) == 3 + len(plain.encode())


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """A seed fixes every file of the folder; another seed gives other weights."""
    first, same, other = (write("llama", tmp_path / str(i), seed=i // 2) for i in range(3))
    assert {f.name for f in first.iterdir()} == {f.name for f in same.iterdir()}
    assert all(file_sha256(f) == file_sha256(same / f.name) for f in first.iterdir())
    assert file_sha256(first / "model.safetensors") != file_sha256(other / "model.safetensors")


def test_catalog_entry_loads(model_home: Path) -> None:
    """`phi-3-tiny-random` is a Phi-3 with the real vocabulary's 32,064 rows."""
    model: Any = AutoModelForCausalLM.from_pretrained(model_home / "models" / "phi-3-tiny-random")
    assert type(model).__name__ == "Phi3ForCausalLM"
    assert model.lm_head.weight.shape == (32064, 64)
    assert sum(p.numel() for p in model.parameters()) == 4_186_432
