"""PEFT's file format: the same bytes for the same adapter, a round trip, and refusals that name the field."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from smedje.errors import InvalidRequest, UnsupportedField
from smedje.modeling.adapter import adapter_files, load_adapter, save_adapter
from smedje.modeling.lora import AdapterConfig

CONFIG = AdapterConfig(2, 4.0, ("q_proj", "down_proj"), dropout=0.1, layers=(0, 1))


def some_weights() -> dict[str, Tensor]:
    """Two layers' worth of random factors under PEFT's names."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in (1, 0):
        for module, inputs, outputs in (("self_attn.q_proj", 6, 4), ("mlp.down_proj", 8, 6)):
            name = f"base_model.model.model.layers.{layer}.{module}"
            weights[f"{name}.lora_A.weight"] = torch.randn(2, inputs, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(outputs, 2, generator=generator)
    return weights


def edit(folder: Path, **changes: Any) -> None:
    """Overwrite fields of adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip(tmp_path: Path) -> None:
    """What is saved is loaded, to the bit, configuration included."""
    save_adapter(tmp_path, some_weights(), CONFIG, "tiny")
    weights, config = load_adapter(tmp_path)
    assert config == CONFIG
    assert weights.keys() == some_weights().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in some_weights().items())


def test_the_same_adapter_gives_the_same_bytes() -> None:
    """Neither the order of the tensors nor their memory layout shows in the files."""
    weights = some_weights()
    shuffled = {name: weights[name].T.contiguous().T for name in sorted(weights, reverse=True)}
    assert adapter_files(weights, CONFIG, "tiny") == adapter_files(shuffled, CONFIG, "tiny")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("fan_in_fan_out", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("trainable_token_indices", [1]),
        ("layer_replication", [[0, 1]]),
        ("init_lora_weights", "pissa"),
        ("peft_type", "IA3"),
        ("a_field_from_the_future", 3),
    ],
)
def test_settings_that_change_the_mathematics_are_refused_by_name(field: str, value: object, tmp_path: Path) -> None:
    """An adapter that we would compute wrongly is not loaded; unknown fields count as such unless they are empty."""
    save_adapter(tmp_path, some_weights(), CONFIG, "tiny")
    edit(tmp_path, **{field: value})
    with pytest.raises(UnsupportedField, match=field):
        load_adapter(tmp_path)


def test_neutral_and_empty_unknown_fields_pass(tmp_path: Path) -> None:
    """Fields that only describe, and unknown ones that are switched off, are no obstacle."""
    save_adapter(tmp_path, some_weights(), CONFIG, "tiny")
    edit(
        tmp_path,
        inference_mode=False,
        revision="main",
        a_field_from_the_future=None,
        another={},
        init_lora_weights="eva",
    )
    assert load_adapter(tmp_path)[1] == CONFIG


def test_targets_given_as_a_pattern_are_read_from_the_tensors(tmp_path: Path) -> None:
    """PEFT allows a regular expression for target_modules; the tensors say what it matched."""
    save_adapter(tmp_path, some_weights(), CONFIG, "tiny")
    edit(tmp_path, target_modules=".*_proj")
    assert set(load_adapter(tmp_path)[1].targets) == {"q_proj", "down_proj"}


def test_pickles_are_never_read(tmp_path: Path) -> None:
    """adapter_model.bin alone is refused, and the message says why."""
    save_adapter(tmp_path, some_weights(), CONFIG, "tiny")
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(InvalidRequest, match=r"adapter_model\.bin: only safetensors"):
        load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.zeros(3, 6), "does not fit rank 2"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.full((2, 6), torch.nan), "not finite"),
        ("base_model.model.lm_head.weight", torch.zeros(2, 6), "lm_head.weight is no LoRA factor"),
    ],
)
def test_wrong_tensors_are_named(name: str, tensor: Tensor, says: str, tmp_path: Path) -> None:
    """A tensor of a wrong rank, with NaN in it, or of another kind stops the load."""
    save_adapter(tmp_path, some_weights(), CONFIG, "tiny")
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path) | {name: tensor}, path)
    with pytest.raises(InvalidRequest, match=says):
        load_adapter(tmp_path)


def test_broken_files_are_reported(tmp_path: Path) -> None:
    """A truncated weight file or a config that is no JSON gives our error, not a traceback from below."""
    save_adapter(tmp_path, some_weights(), CONFIG, "tiny")
    path = tmp_path / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load_adapter(tmp_path)
    path.write_bytes(whole)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load_adapter(tmp_path)
