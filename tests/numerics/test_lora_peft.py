"""Our adapters and PEFT's are the same adapters: forward, gradients, and files in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import flat, largest_difference, make_reference, random_documents, reference_logits
from torch import Tensor

from smedje.modeling.adapter import load_adapter, save_adapter
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.config import targets_of
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora, merged_state
from smedje.modeling.served_adapters import SegmentedLora, ServedAdapter
from smedje.modeling.transformer import CausalDecoder, LowRank

LENGTHS = (13, 4, 21)
DOCUMENTS = random_documents(LENGTHS)
FAMILIES = ["llama", "phi3", "qwen3", "gemma3"]

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def logits(decoder: CausalDecoder, lora: LowRank | None) -> Tensor:
    """Our logits of the three documents in one stream."""
    tokens, positions = flat(DOCUMENTS)
    return decoder.head(decoder.forward(tokens, positions, DocumentAttention(LENGTHS, decoder.shape.windows), lora))


def trained(decoder: CausalDecoder, config: AdapterConfig) -> TrainableLora:
    """An adapter whose B is no longer zero."""
    generator = torch.Generator().manual_seed(7)
    lora = TrainableLora(decoder.slots, config, generator=generator)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lora


def with_peft(reference: Any, folder: Path, *, trainable: bool = False) -> Any:
    """transformers' model with the saved adapter on it, computed by PEFT."""
    from peft import PeftModel

    return PeftModel.from_pretrained(reference, folder, is_trainable=trainable).eval()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_computes_our_saved_adapter_alike(family: str, rslora: bool, tmp_path: Path) -> None:
    """Logits with our adapter equal PEFT's with the saved files on transformers' model, served and merged too."""
    reference = make_reference(family, tmp_path / "base")
    decoder = load_decoder(tmp_path / "base")
    config = AdapterConfig(4, 6.0, targets_of(decoder.slots), rslora=rslora)
    lora = trained(decoder, config)
    save_adapter(tmp_path / "adapter", lora.weights(), config, "tiny")
    theirs = reference_logits(with_peft(reference, tmp_path / "adapter"), DOCUMENTS)
    served = ServedAdapter(decoder, *load_adapter(tmp_path / "adapter"))
    with torch.no_grad():
        beside = largest_difference(logits(decoder, lora), theirs)
        batched = largest_difference(logits(decoder, SegmentedLora([(served, torch.arange(sum(LENGTHS)))])), theirs)
    print(f"{family}: largest difference trained {beside:.1e}, served {batched:.1e}")
    assert max(beside, batched) <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_pefts(family: str, tmp_path: Path) -> None:
    """One loss over labelled rows gives our factors and PEFT's the same gradients, to 1e-5 relative."""
    reference = make_reference(family, tmp_path / "base")
    decoder = load_decoder(tmp_path / "base")
    config = AdapterConfig(4, 8.0, targets_of(decoder.slots))
    lora = trained(decoder, config)
    save_adapter(tmp_path / "adapter", lora.weights(), config, "tiny")
    model = with_peft(reference, tmp_path / "adapter", trainable=True)
    labels = torch.cat([document.roll(-1) for document in DOCUMENTS])
    torch.nn.functional.cross_entropy(logits(decoder, lora), labels).backward()
    theirs_logits = torch.cat([model(input_ids=document[None]).logits[0] for document in DOCUMENTS])
    torch.nn.functional.cross_entropy(theirs_logits, labels).backward()
    theirs = {
        name.replace(".default", ""): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    ours = dict(zip(lora.weights(), (parameter.grad for parameter in lora.parameters()), strict=True))
    assert set(theirs) == set(ours)
    worst = max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours)
    print(f"{family}: worst relative gradient difference {worst:.1e}")
    assert worst <= 1e-5


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_adapters_that_peft_wrote_load_here(family: str, tmp_path: Path) -> None:
    """An adapter made, saved and configured by PEFT gives the same logits here."""
    from peft import LoraConfig, get_peft_model

    reference = make_reference(family, tmp_path / "base")
    decoder = load_decoder(tmp_path / "base")
    torch.manual_seed(3)
    model = get_peft_model(reference, LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    weights, config = load_adapter(tmp_path / "adapter")
    assert set(config.targets) == set(targets_of(decoder.slots))
    lora = TrainableLora(decoder.slots, config, generator=torch.Generator())
    lora.load_weights(weights)
    with torch.no_grad():
        difference = largest_difference(logits(decoder, lora), reference_logits(model.eval(), DOCUMENTS))
    print(f"{family}: largest difference {difference:.1e}")
    assert difference <= 1e-4


def test_merged_export_loads_in_transformers(tmp_path: Path) -> None:
    """The merged weights, saved beside the base model's config.json, are an ordinary model to transformers."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    make_reference("qwen2", tmp_path / "base")
    decoder = load_decoder(tmp_path / "base")
    config = AdapterConfig(4, 8.0, targets_of(decoder.slots))
    lora = trained(decoder, config)
    (tmp_path / "merged").mkdir()
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "merged" / "config.json").write_text(json.dumps(settings))
    merged = merged_state(decoder, lora.weights(), config)
    save_file(merged, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert largest_difference(logits(decoder, lora), reference_logits(model, DOCUMENTS)) <= 1e-4
