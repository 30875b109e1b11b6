"""Other architectures through transformers: the same interface, exact or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import SIZES, flat, largest_difference, make_reference, random_documents, reference_logits

from smedje.errors import InvalidRequest
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.fallback import FallbackDecoder
from smedje.modeling.load import load_decoder

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write_model(class_name: str, folder: Path, **settings: Any) -> Any:
    """A random transformers model of this class in `folder`."""
    import transformers

    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**settings, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def packed_difference(reference: Any, folder: Path) -> float:
    """Largest logit difference between three packed documents here and each alone in transformers."""
    decoder = load_decoder(folder)
    assert isinstance(decoder, FallbackDecoder)
    documents = random_documents((20, 3, 31))
    tokens, positions = flat(documents)
    with torch.no_grad():
        hidden = decoder(tokens, positions, DocumentAttention((20, 3, 31), decoder.shape.windows))
        return largest_difference(decoder.head(hidden), reference_logits(reference, documents))


@pytest.mark.parametrize("tied", [True, False])
def test_gemma3_equals_transformers(tied: bool, tmp_path: Path) -> None:
    """Gemma 3: sliding and full layers, its own score scale, a soft cap on the logits."""
    settings = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24, "final_logit_softcapping": 5.0}
    reference = write_model("Gemma3ForCausalLM", tmp_path, **SIZES, **settings, tie_word_embeddings=tied)
    difference = packed_difference(reference, tmp_path)
    print(f"gemma3: largest difference {difference:.1e}")
    assert difference <= 1e-4


@pytest.mark.parametrize(
    ("class_name", "settings"),
    [
        ("Olmo2ForCausalLM", SIZES),
        ("GPTNeoXForCausalLM", SIZES | {"use_parallel_residual": True}),
    ],
)
def test_other_families_equal_transformers(class_name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Families that nobody wrote a line for here work as they are, packed like our own."""
    reference = write_model(class_name, tmp_path, **settings)
    difference = packed_difference(reference, tmp_path)
    print(f"{class_name}: largest difference {difference:.1e}")
    assert difference <= 1e-4


def test_an_owned_family_with_a_foreign_setting_falls_back(tmp_path: Path) -> None:
    """Llama with YaRN is not computed by our own decoder, yet it works."""
    make_reference("llama", tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw["rope_parameters"] = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    path.write_text(json.dumps(raw))
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert packed_difference(reference, tmp_path) <= 1e-4


def test_exported_state_is_the_files(tmp_path: Path) -> None:
    """The fallback hands its weights out under the names of the files."""
    from safetensors.torch import load_file

    make_reference("gemma3", tmp_path)
    exported = load_decoder(tmp_path).export_state()
    stored = load_file(tmp_path / "model.safetensors")
    assert set(exported) == set(stored)
    assert all(torch.equal(exported[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize(
    ("class_name", "settings"),
    [
        ("Gemma2ForCausalLM", SIZES | {"head_dim": 16, "attn_logit_softcapping": 5.0}),
        ("StableLmForCausalLM", SIZES),
        ("BloomForCausalLM", {"vocab_size": 96, "hidden_size": 48, "n_layer": 2, "n_head": 4}),
        ("MambaForCausalLM", {"vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 2, "state_size": 4}),
    ],
)
def test_what_cannot_be_exact_is_refused(class_name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Soft caps, own attention, position biases and recurrent layers are refused when the model is loaded."""
    write_model(class_name, tmp_path, **settings)
    with pytest.raises(InvalidRequest) as caught:
        load_decoder(tmp_path)
    print(caught.value)


def test_remote_code_is_never_run(tmp_path: Path) -> None:
    """A folder that brings its own Python is refused and the Python is not imported."""
    make_reference("gemma3", tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw |= {
        "architectures": ["OwnForCausalLM"],
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    path.write_text(json.dumps(raw))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InvalidRequest):
        load_decoder(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    """transformers would draw missing tensors at random; here the load stops and names one."""
    from safetensors.torch import load_file, save_file

    make_reference("gemma3", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidRequest, match=r"missing keys.*up_proj"):
        load_decoder(tmp_path)
