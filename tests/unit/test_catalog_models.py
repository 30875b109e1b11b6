"""The catalog of base models: what every entry must say, how entries are found."""

import json
from pathlib import Path

import msgspec
import pytest

from smedje.domain.catalog import BaseModel, SourceKind, check_base_name
from smedje.errors import NotFound
from smedje.modeling.catalog import find_base_model, load_catalog, parse_catalog, search_catalog
from smedje.modeling.folder import read_manifest
from smedje.modeling.sources.files import KNOWN_ARCHITECTURES
from smedje.modeling.tensor_file import read_tensor_header

MODELS = list(load_catalog().values())
PROMISED = (
    "smollm2-135m-instruct",
    "phi-3-mini-4k-instruct",
    "phi-3-mini-128k-instruct",
    "phi-3.5-mini-instruct",
    "phi-4-mini-instruct",
    "phi-3-tiny-random",
)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_every_entry_is_sound(model: BaseModel) -> None:
    """Name, architecture, sizes, rates and sources of an entry fit together."""
    assert check_base_name(model.name) == model.name
    assert model.architecture in KNOWN_ARCHITECTURES
    assert model.limits.min_learning_rate < model.defaults.learning_rate < model.limits.max_learning_rate
    assert 0 < model.defaults.max_tokens_per_example <= model.limits.max_tokens_per_example <= model.context_tokens
    assert (model.defaults.lora_rank, model.defaults.lora_alpha) == (16, 32)
    assert model.parameters < model.memory_serving_bytes < model.memory_training_bytes
    assert model.disk_bytes >= 2 * model.parameters
    assert model.licence
    assert model.licence_url.startswith("https://")
    assert "supervised" in model.methods
    assert model.sources
    for source in model.sources:
        assert (source.kind is SourceKind.HUB) == bool(source.repo)
        assert source.kind is not SourceKind.PACKAGE or len(source.sha256) == 1


def test_promised_names_are_there() -> None:
    """The names that scripts rely on are in the catalog, and one model is the default."""
    assert set(PROMISED) <= load_catalog().keys()
    assert [m.name for m in MODELS if m.embedded] == ["smollm2-135m-instruct"]


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "phi-3-tiny-random"])
def test_entry_tells_the_truth_about_the_files(model_home: Path, name: str) -> None:
    """Parameters, disk size, architecture and context equal what is installed."""
    model, folder = find_base_model(name), model_home / "models" / name
    config = json.loads((folder / "config.json").read_text())
    shapes = [entry["shape"] for entry in read_tensor_header(folder / "model.safetensors").values()]
    assert model.parameters == sum(s[0] * (s[1] if len(s) == 2 else 1) for s in shapes)
    assert config["architectures"] == [model.architecture]
    assert config["max_position_embeddings"] == model.context_tokens
    assert abs(read_manifest(folder).bytes - model.disk_bytes) < 0.15 * model.disk_bytes


def test_search_finds_the_phi_family() -> None:
    """Searching for "phi-3" finds the Phi-3 models, as in the catalog of Azure AI Foundry."""
    found = [m.name for m in search_catalog("phi-3")]
    assert {"phi-3-mini-4k-instruct", "phi-3-mini-128k-instruct", "phi-3.5-mini-instruct"} <= set(found)
    assert all("phi" in name for name in found)


def test_search_narrows() -> None:
    """Every word has to be found, in any case; family and method narrow further; nothing matches nonsense."""
    assert [m.name for m in search_catalog("MINI 128k microsoft")] == [
        "phi-3-mini-128k-instruct",
        "phi-3.5-mini-instruct",
        "phi-4-mini-instruct",
    ]
    assert {m.family for m in search_catalog(family="qwen")} == {"qwen"}
    assert len(search_catalog(method="supervised")) == len(MODELS) == len(search_catalog())
    assert search_catalog("zebra") == ()


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("phi-3-mini-4k-instuct", "phi-3-mini-4k-instruct"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi-3-mini-4k-instruct"),
        ("SmolLM2-135M", "smollm2-135m-instruct"),
    ],
)
def test_unknown_name_offers_near_ones(asked: str, near: str) -> None:
    """A misspelt name or a hub id is answered with the names that are near."""
    with pytest.raises(NotFound, match=f"Did you mean .*{near}") as caught:
        find_base_model(asked)
    assert caught.value.code == "model_not_found"


def test_name_without_likeness_offers_none() -> None:
    """A name like no other gets no guesses, only the command that lists them."""
    with pytest.raises(NotFound, match=r"no base model 'zzz' in the catalog\. List them with"):
        find_base_model("zzz")


def test_unknown_keys_are_refused() -> None:
    """A misspelt key in the catalog's data is an error that names it, not a silent default."""
    text = json.dumps({"models": [], "modles": []}).encode()
    with pytest.raises(msgspec.ValidationError, match="modles"):
        parse_catalog(text)


def test_callers_cannot_change_the_catalog() -> None:
    """What load_catalog hands out is a copy."""
    load_catalog().clear()
    assert load_catalog()


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_documentation_says_the_same(model: BaseModel) -> None:
    """The table in docs/base-models.md has every model's context, licence and rate."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "base-models.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| `{model.name}` |"))
    cells = [cell.strip() for cell in row.split("|")]
    licence = model.licence + (" (gated)" if model.gated else "")
    assert cells[3:6] == [f"{model.context_tokens:,}", licence, f"{model.defaults.learning_rate:g}"]
