"""Exported models compute what is served: merged folders and GGUF files, read back by us and by transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import largest_difference, make_reference
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from smedje.chat.template import render_prompt
from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.domain.catalog import FULL_WEIGHTS_FILE
from smedje.errors import InvalidRequest, UnsupportedField
from smedje.modeling.adapter import load_adapter, save_adapter
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.config import targets_of
from smedje.modeling.convert_gguf import convert_gguf
from smedje.modeling.export import export_gguf, export_merged, main
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora
from smedje.modeling.served_adapters import SegmentedLora, ServedAdapter
from smedje.modeling.tiny_random import write_tiny_llama
from smedje.modeling.transformer import CausalDecoder
from smedje.training.full import write_tensors

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "My 2 parcels are late, øl & 東京!"},
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def served(model: CausalDecoder, adapter: Path | None, tokens: Tensor) -> Tensor:
    """The logits that the engine samples from: the base model with the adapter beside it."""
    lora = None
    if adapter is not None:
        lora = SegmentedLora([(ServedAdapter(model, *load_adapter(adapter)), torch.arange(len(tokens)))])
    attend = DocumentAttention([len(tokens)], model.shape.windows)
    with torch.inference_mode():
        return model.head(model.forward(tokens, torch.arange(len(tokens)), attend, lora))


def by_transformers(folder: Path, tokens: Tensor, **options: Any) -> Tensor:
    """The logits of the model that transformers loads."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.inference_mode():
        logits: Tensor = model(tokens[None]).logits[0]
    return logits


def with_adapter(base: Path, folder: Path) -> tuple[CausalDecoder, Path]:
    """The base model and a random adapter for it."""
    model = load_decoder(base)
    config = AdapterConfig(rank=4, alpha=8.0, targets=targets_of(model.slots))
    generator = torch.Generator().manual_seed(3)
    weights = TrainableLora(model.slots, config, generator=generator).weights()
    for name, tensor in weights.items():
        if ".lora_B." in name:
            tensor.normal_(0.0, 0.05, generator=generator)
    save_adapter(folder, weights, config, "base")
    return model, folder


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2-window", "qwen3"])
def test_a_merged_folder_gives_the_served_logits(family: str, tmp_path: Path) -> None:
    """transformers loads the folder and says what base and adapter say together, in every layout of q, k and v."""
    make_reference(family, tmp_path / "base")
    model, adapter = with_adapter(tmp_path / "base", tmp_path / "adapter")
    export_merged(tmp_path / "base", adapter, tmp_path / "out")
    tokens = torch.arange(5, 45)
    expected = served(model, adapter, tokens)
    assert largest_difference(by_transformers(tmp_path / "out", tokens), expected) < 1e-4
    assert largest_difference(served(model, None, tokens), expected) > 0.01
    assert largest_difference(served(load_decoder(tmp_path / "out"), None, tokens), expected) < 1e-4


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_numbers_are_stored_as_asked(kind: str, tmp_path: Path) -> None:
    """Half the bytes, and logits that differ by rounding only."""
    make_reference("llama", tmp_path / "base")
    model, adapter = with_adapter(tmp_path / "base", tmp_path / "adapter")
    export_merged(tmp_path / "base", adapter, tmp_path / "out", dtype=kind)
    whole, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("base", "out"))
    assert half < 0.6 * whole
    expected = served(model, adapter, torch.arange(5, 25))
    found = served(load_decoder(tmp_path / "out"), None, torch.arange(5, 25))
    assert 0 < largest_difference(found, expected) < 0.05 * float(expected.abs().max())


@pytest.fixture(params=["llama", "phi3"])
def base(request: pytest.FixtureRequest, tmp_path: Path, model_home: Path) -> Path:
    """A tiny model with a real tokenizer and template: SmolLM2's on a Llama, or Phi-3's own."""
    if request.param == "phi3":
        return model_home / "models" / "phi-3-tiny-random"
    folder, real = tmp_path / "base", model_home / "models" / "smollm2-135m-instruct"
    write_tiny_llama(folder)
    config = json.loads((folder / "config.json").read_text())
    make_larger(folder, config, rows=json.loads((real / "config.json").read_text())["vocab_size"])
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(real / name, folder / name)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


def make_larger(folder: Path, config: dict[str, Any], *, rows: int) -> None:
    """Give the model in `folder` a random vocabulary of so many rows."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = torch.randn(rows, state[name].shape[1], generator=generator) * 0.05
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))


def test_a_gguf_file_gives_the_served_logits(base: Path, tmp_path: Path) -> None:
    """Read back by our converter and by transformers: the same prompt ids, the same logits, the same stops."""
    model, adapter = with_adapter(base, tmp_path / "adapter")
    export_gguf(base, adapter, tmp_path / "out" / "m.gguf", dtype="f32", name="tuned")
    tokenizer = load_chat_tokenizer(base)
    prompt = render_prompt(tokenizer, MESSAGES)
    expected = served(model, adapter, torch.tensor(prompt))

    for _ in convert_gguf(tmp_path / "out" / "m.gguf", tmp_path / "back"):
        pass
    again = load_chat_tokenizer(tmp_path / "back")
    assert render_prompt(again, MESSAGES) == prompt
    assert set(again.stop_ids) & set(tokenizer.stop_ids)
    assert largest_difference(served(load_decoder(tmp_path / "back"), None, torch.tensor(prompt)), expected) < 1e-4

    theirs = by_transformers(tmp_path / "out", torch.tensor(prompt), gguf_file="m.gguf")
    assert largest_difference(theirs, expected) < 1e-4
    if base.name != "phi-3-tiny-random":  # transformers rebuilds a SentencePiece pipeline with other spaces
        pieces = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="m.gguf")
        assert pieces.encode("Hello there", add_special_tokens=False) == tokenizer.encode("Hello there")
    modelfile = (tmp_path / "out" / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./m.gguf\n")
    end = "<|im_end|>" if base.name == "base" else "<|end|>"
    assert f'PARAMETER stop "{end}"' in modelfile
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "m.gguf"]


def test_tuned_weights_and_dora_reach_a_gguf_file(base: Path, tmp_path: Path) -> None:
    """All weights of a full tuning, and an adapter with magnitudes: read back they say what was served."""
    prompt = torch.tensor(render_prompt(load_chat_tokenizer(base), MESSAGES))
    model = load_decoder(base)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.01 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    (tmp_path / "full").mkdir()
    write_tensors(tmp_path / "full" / FULL_WEIGHTS_FILE, model.export_state())
    plain = load_decoder(base)
    config = AdapterConfig(rank=4, alpha=8.0, targets=targets_of(plain.slots), dora=True)
    lora = TrainableLora(plain.slots, config, generator=torch.Generator().manual_seed(3), base=plain)
    weights = {name: tensor + 0.02 * torch.rand_like(tensor) for name, tensor in lora.weights().items()}
    save_adapter(tmp_path / "dora", weights, config, "base")
    expected = {"full": served(model, None, prompt), "dora": served(plain, tmp_path / "dora", prompt)}
    for name, logits in expected.items():
        export_gguf(base, tmp_path / name, tmp_path / f"{name}.gguf", dtype="f32")
        for _ in convert_gguf(tmp_path / f"{name}.gguf", tmp_path / f"{name}-back"):
            pass
        assert largest_difference(served(load_decoder(tmp_path / f"{name}-back"), None, prompt), logits) < 1e-4, name


def test_half_precision_rounds_matrices_only(base: Path, tmp_path: Path) -> None:
    """An f16 file is half as large and says nearly the same."""
    model = load_decoder(base)
    for kind in ("f16", "f32"):
        export_gguf(base, None, tmp_path / f"{kind}.gguf", dtype=kind)
    half, whole = ((tmp_path / f"{kind}.gguf").stat().st_size for kind in ("f16", "f32"))
    assert half < 0.85 * whole
    for _ in convert_gguf(tmp_path / "f16.gguf", tmp_path / "back"):
        pass
    tokens = torch.arange(5, 30)
    expected = served(model, None, tokens)
    assert largest_difference(served(load_decoder(tmp_path / "back"), None, tokens), expected) < 0.02 * float(
        expected.abs().max()
    )


def test_what_gguf_cannot_hold_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another architecture, and a target that is in the way, are refused by name, and nothing is left behind."""
    make_reference("qwen3", tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).write_text("{}")
    with pytest.raises(UnsupportedField, match="qwen3"):
        export_gguf(tmp_path / "base", None, tmp_path / "out" / "m.gguf")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(InvalidRequest, match="not empty"):
        export_merged(tmp_path / "base", None, tmp_path / "base")
    assert main(["gguf", str(tmp_path / "base"), str(tmp_path / "x.gguf")]) == 1
    assert "qwen3" in capsys.readouterr().err
