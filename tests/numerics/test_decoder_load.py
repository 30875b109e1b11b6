"""Reading model folders: settings old and new, weights in and out, and every way a folder can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import FAMILIES, make_reference
from safetensors.torch import load_file, save_file
from torch import Tensor

from smedje.errors import InvalidRequest, UnsupportedField
from smedje.modeling.config import OWNED_ARCHITECTURES, all_linear_targets, read_decoder_config, rope_regime
from smedje.modeling.load import export_state, load_decoder
from smedje.modeling.transformer import Decoder

OWNED = [name for name in FAMILIES if name != "gemma3"]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the parsed config.json and write it back."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Apply `change` to the stored tensors and write them back."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("family", OWNED)
def test_weights_come_out_as_they_went_in(family: str, tmp_path: Path) -> None:
    """Every tensor of the file is exported under its own name with its own bits, and nothing else is."""
    make_reference(family, tmp_path)
    decoder = load_decoder(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    exported = export_state(decoder)
    assert set(exported) == set(stored)
    assert all(torch.equal(exported[name], tensor) for name, tensor in stored.items())
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_sharded_files_load_alike(tmp_path: Path) -> None:
    """A model split over several files with an index loads to the same bits as one file."""
    reference = make_reference("qwen2", tmp_path / "one")
    reference.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = (export_state(load_decoder(tmp_path / name)) for name in ("one", "many"))
    assert set(one) == set(many)
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_old_and_new_spellings_of_rope_agree(tmp_path: Path) -> None:
    """rope_scaling with top-level rope_theta (transformers 4) reads like rope_parameters (transformers 5)."""
    make_reference("phi4-mini", tmp_path)
    new = read_decoder_config(tmp_path)

    def to_old(raw: dict[str, Any]) -> None:
        parameters = raw.pop("rope_parameters")
        raw["rope_theta"] = parameters.pop("rope_theta")
        raw["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
        raw["original_max_position_embeddings"] = parameters.pop("original_max_position_embeddings")
        raw["rope_scaling"] = {"type": "su", **{key: parameters[key] for key in ("short_factor", "long_factor")}}

    edit_config(tmp_path, to_old)
    assert read_decoder_config(tmp_path) == new
    assert new.rope.rotary_size == 6
    assert new.rope.scaling > 1


def test_regime_follows_the_admitted_length(tmp_path: Path) -> None:
    """The long factors come in above the original context, never for other kinds of rope."""
    make_reference("phi3-longrope", tmp_path / "long")
    make_reference("llama", tmp_path / "plain")
    rope = read_decoder_config(tmp_path / "long").rope
    assert [rope_regime(rope, length) for length in (None, 1, 32, 33)] == ["short", "short", "short", "long"]
    assert rope_regime(read_decoder_config(tmp_path / "plain").rope, 10**6) == "short"


def test_all_linear_targets_per_family(tmp_path: Path) -> None:
    """ "All linear layers" means seven names where the files keep q, k, v, gate and up apart, four for Phi-3."""
    make_reference("llama", tmp_path / "llama")
    make_reference("phi3", tmp_path / "phi3")
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert all_linear_targets(read_decoder_config(tmp_path / "llama")) == names
    phi3 = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert all_linear_targets(read_decoder_config(tmp_path / "phi3")) == phi3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "missing.*model.norm.weight"),
        (lambda tensors: tensors.update({"model.layers.9.x": torch.zeros(1)}), "unexpected tensor model.layers.9.x"),
        (
            lambda tensors: tensors.update({"model.layers.1.self_attn.k_proj.weight": torch.zeros(3, 48)}),
            r"k_proj.weight is \(3, 48\).*\(16, 48\)",
        ),
    ],
)
def test_wrong_tensors_are_named(change: Callable[[dict[str, Tensor]], object], says: str, tmp_path: Path) -> None:
    """A missing, left-over or mis-sized tensor stops the load with its name."""
    make_reference("llama", tmp_path)
    edit_weights(tmp_path, change)
    with pytest.raises(InvalidRequest, match=says):
        load_decoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw.pop("hidden_size"), "hidden_size"),
        (lambda raw: raw.update(num_attention_heads="six"), "num_attention_heads"),
        (lambda raw: raw.update(architectures=[]), "architectures"),
    ],
)
def test_wrong_settings_are_named(change: Callable[[dict[str, Any]], object], says: str, tmp_path: Path) -> None:
    """A missing or mistyped field of config.json stops the load with its name."""
    make_reference("llama", tmp_path)
    edit_config(tmp_path, change)
    with pytest.raises(InvalidRequest, match=says):
        load_decoder(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(hidden_act="gelu"),
        lambda raw: raw.update(architectures=["GPT2LMHeadModel"]),
        lambda raw: raw["rope_parameters"].update(rope_type="yarn"),
        lambda raw: raw.update(quantization_config={"bits": 4}),
    ],
)
def test_what_our_decoder_does_not_compute_is_refused(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    """Settings outside our own mathematics never pass as if they were inside it."""
    make_reference("llama", tmp_path)
    edit_config(tmp_path, change)
    with pytest.raises(UnsupportedField):
        read_decoder_config(tmp_path)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    """No config.json, no safetensors, or a truncated file: the message names the file."""
    with pytest.raises(InvalidRequest, match=r"config\.json is missing"):
        load_decoder(tmp_path)
    make_reference("llama", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InvalidRequest, match=r"model\.safetensors cannot be read"):
        load_decoder(tmp_path)
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidRequest, match=r"no model\.safetensors"):
        load_decoder(tmp_path)


def test_a_head_stored_beside_tied_embeddings_is_ignored(tmp_path: Path) -> None:
    """Some published files repeat the tied embedding as lm_head.weight; transformers ignores it, and so do we."""
    make_reference("llama", tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(96, 48)}))
    decoder = load_decoder(tmp_path)
    assert isinstance(decoder, Decoder)
    assert decoder.output is decoder.embedding


def test_owned_architectures_are_the_documented_ones() -> None:
    """The list of families that our own decoder computes is a promise."""
    names = ("LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
    assert names == OWNED_ARCHITECTURES
