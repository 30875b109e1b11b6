"""Weights in bf16: the check lets them pass, adapters and logits stay in fp32, and rows do not depend on company."""

from pathlib import Path

import pytest
import torch
from tests.contract.engine_suite import complete, request, tiny_model, torch_engine, write_adapters

from smedje.modeling.attention import DocumentAttention
from smedje.modeling.load import load_decoder
from smedje.modeling.products import multiplies_bf16
from smedje.modeling.transformer import CausalDecoder, Decoder
from smedje.serving.weights import load_served

TOKENS = torch.arange(3, 43)

pytestmark = pytest.mark.skipif(not multiplies_bf16(), reason="this processor has no bf16 products")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's folder, with adapters beside it."""
    folder = tmp_path_factory.mktemp("models") / "model"
    write_adapters(tiny_model(folder), folder.parent / "objects")
    return folder


def logits(model: CausalDecoder) -> torch.Tensor:
    """What the model expects after each of TOKENS."""
    with torch.inference_mode():
        attend = DocumentAttention((len(TOKENS),), model.shape.windows)
        return model.head(model.forward(TOKENS, torch.arange(len(TOKENS)), attend))


def test_a_model_in_bf16_is_near_and_not_equal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told and passes; weights take half the memory; logits are not rounded to bf16's eight digits."""
    served, numbers = load_served(folder, "bf16")
    assert numbers == "bf16"
    assert "bf16 weights against fp32" in capsys.readouterr().out
    assert isinstance(served, Decoder)
    assert {served.weight(slot.site).dtype for slot in served.slots} == {torch.bfloat16}
    got, expected = logits(served), logits(load_decoder(folder))
    difference = (got - expected).abs().max() / expected.abs().max()
    assert 1e-5 < difference < 0.02
    assert not torch.equal(got, got.bfloat16().float())


def test_the_engine_says_the_same_alone_and_in_company(folder: Path) -> None:
    """Requests for the base model and an adapter, together and one by one."""
    model, _ = load_served(folder, "bf16")
    objects = folder.parent / "objects"
    asked = [request(length=9 + n, seed=n, max_tokens=12) for n in range(4)]
    alone = [complete(torch_engine(model, objects), one).tokens for one in asked]
    together = torch_engine(model, objects)
    for number, one in enumerate(asked):
        together.add(number, one)
    said: dict[int, tuple[int, ...]] = dict.fromkeys(range(4), ())
    while any(len(tokens) < 12 for tokens in said.values()):
        for delivery in together.step():
            said[delivery.request_id] += delivery.chunk.tokens
    assert list(said.values()) == alone
