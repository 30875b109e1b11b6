"""bf16 products under fp32 everything else: as near to the truth as transformers' own bf16, and the option acts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import flat, make_reference, random_documents
from tests.training_runs import Bench, bench
from torch import Tensor

from smedje.errors import InvalidRequest
from smedje.modeling.adapter import save_adapter
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.config import targets_of
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora
from smedje.modeling.products import BF16_PRODUCTS, FP32_OF_BF16, Numbers
from smedje.modeling.transformer import Decoder
from smedje.training.precision import multiplies_bf16
from smedje.training.spec import LoraSpec

LENGTHS = (40, 9, 33)
DOCUMENTS = random_documents(LENGTHS)
needs_bf16 = pytest.mark.skipif(not multiplies_bf16(), reason="this processor has no bf16 products")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(tmp_path_factory.mktemp("precision"))


def adapter(decoder: Any) -> TrainableLora:
    """An adapter whose B is no longer zero."""
    generator = torch.Generator().manual_seed(7)
    lora = TrainableLora(decoder.slots, AdapterConfig(4, 8.0, targets_of(decoder.slots)), generator=generator)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return lora


def gradient(folder: Path, numbers: Numbers | None) -> dict[str, Tensor]:
    """The adapter's gradients of the mean loss of all documents, by PEFT's names."""
    decoder = load_decoder(folder, numbers=numbers)
    lora = adapter(decoder)
    tokens, positions = flat(DOCUMENTS)
    hidden = decoder.forward(tokens, positions, DocumentAttention(LENGTHS), lora)
    ends = torch.tensor(LENGTHS).cumsum(0) - 1
    rows = torch.tensor([row for row in range(len(tokens)) if row not in ends])
    torch.nn.functional.cross_entropy(decoder.head(hidden[rows]).float(), tokens[rows + 1]).backward()
    names = lora.weights()
    found = {tensor.data_ptr(): tensor.grad for tensor in lora.parameters()}
    gradients = {name: found[tensor.data_ptr()] for name, tensor in names.items()}
    return {name: part for name, part in gradients.items() if part is not None}


def transformers_gradient(reference: Any, folder: Path) -> dict[str, Tensor]:
    """The same by transformers and PEFT with the whole model in bf16."""
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(reference.to(torch.bfloat16), folder / "adapter", is_trainable=True)
    total = sum(
        torch.nn.functional.cross_entropy(model(document[None]).logits[0, :-1].float(), document[1:], reduction="sum")
        for document in DOCUMENTS
    )
    (total / (sum(LENGTHS) - len(LENGTHS))).backward()
    return {
        name.replace(".default", ""): parameter.grad.float()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Distance of all gradients together from the truth, relative."""
    assert found.keys() == truth.keys()
    off = sum(float((found[name] - truth[name]).square().sum()) for name in truth)
    return float((off / sum(float(part.square().sum()) for part in truth.values())) ** 0.5)


@needs_bf16
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_bf16_gradients_are_as_near_as_those_of_transformers(family: str, tmp_path: Path) -> None:
    """The error against fp32 is at most 1.2 times that of transformers and PEFT in bf16 on the same rows."""
    reference = make_reference(family, tmp_path)
    truth = gradient(tmp_path, None)
    decoder = load_decoder(tmp_path)
    lora = adapter(decoder)
    save_adapter(tmp_path / "adapter", lora.weights(), lora.config, "tiny")
    ours, theirs = (
        error(gradient(tmp_path, BF16_PRODUCTS), truth),
        error(transformers_gradient(reference, tmp_path), truth),
    )
    print(f"{family}: ours {ours:.2e}, transformers {theirs:.2e}")
    assert 0 < ours <= 1.2 * theirs


def test_bf16_weights_multiplied_in_fp32_are_exact(tmp_path: Path) -> None:
    """Weights that bf16 can hold give the same bits whether they are stored in bf16 or in fp32."""
    make_reference("llama", tmp_path)
    kept, wide = load_decoder(tmp_path, numbers=FP32_OF_BF16), load_decoder(tmp_path)
    assert isinstance(kept, Decoder)
    assert isinstance(wide, Decoder)
    tokens, positions = flat(DOCUMENTS)
    with torch.no_grad():
        for name, tensor in wide.export_state().items():
            tensor.copy_(tensor.to(torch.bfloat16) if tensor.ndim == 2 else tensor)
            kept.export_state()[name].copy_(tensor)
        one, other = (model.forward(tokens, positions, DocumentAttention(LENGTHS)) for model in (kept, wide))
        assert kept.weight(kept.slots[0].site).dtype == torch.bfloat16
        assert torch.equal(one, other)
        assert torch.equal(kept.head(one), wide.head(other))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")
def test_a_file_of_another_type_is_not_kept_in_memory(tmp_path: Path) -> None:
    """A bf16 base model made from an fp32 file holds none of the file's pages."""
    make_reference("llama", tmp_path)
    decoder = load_decoder(tmp_path, numbers=BF16_PRODUCTS)
    assert isinstance(decoder, Decoder)
    assert str(tmp_path / "model.safetensors") not in Path("/proc/self/maps").read_text()


@needs_bf16
def test_the_option_changes_the_products_and_hardly_the_loss(place: Bench) -> None:
    """bf16 trains to other bits and a held-out loss within 0.5 % of fp32; auto is bf16 where the processor has it."""
    losses = {}
    for precision in ("fp32", "bf16", "auto"):
        records, _ = place.with_spec(lora=LoraSpec(rank=4, alpha=8.0, precision=precision)).train()
        losses[precision] = records[-1].full_valid_loss
    fp32, bf16 = losses["fp32"], losses["bf16"]
    assert fp32 is not None
    assert bf16 is not None
    assert fp32 != bf16 == losses["auto"]
    assert abs(bf16 - fp32) <= 0.005 * fp32


def test_bf16_is_refused_where_it_would_crawl(place: Bench) -> None:
    """Where it is not offered the refusal names the option."""
    asked = place.with_spec(device="meta", lora=LoraSpec(rank=4, precision="bf16"))
    with pytest.raises(InvalidRequest) as refused:
        asked.prepare()
    assert refused.value.param == "smedje.precision"
