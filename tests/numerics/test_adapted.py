"""A product computed with what comes before it and its adapter: the same numbers as one after the other, less kept."""

from pathlib import Path

import pytest
import torch
from reference_models import flat, make_reference, random_documents
from torch import Tensor

from smedje.modeling.adapted import AsTheyAre, Frozen, adapted_linear
from smedje.modeling.config import Site, targets_of
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora
from smedje.modeling.low_rank import Factors
from smedje.modeling.products import BF16_PRODUCTS, Numbers, product_and
from smedje.modeling.transformer import LowRank
from smedje.modeling.tree_attention import Segment, TreeAttention
from smedje.training.precision import multiplies_bf16

LENGTHS = (40, 9, 33)
TOKENS, POSITIONS = flat(random_documents(LENGTHS))
ATTEND = TreeAttention([Segment(0, 40, 40), Segment(40, 49, 49), Segment(49, 82, 82)])
needs_bf16 = pytest.mark.skipif(not multiplies_bf16(), reason="this processor has no bf16 products")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Apart:
    """An adapter that is computed after each product, as one that products do not know."""

    def __init__(self, lora: TrainableLora) -> None:
        self._lora = lora

    def __call__(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
        """The adapter's own way."""
        out: Tensor = self._lora(site, x, y)
        return out


def gradients(
    folder: Path, config: AdapterConfig, *, apart: bool, numbers: Numbers | None = None
) -> tuple[Tensor, ...]:
    """Hidden states, then the gradients of a trained adapter's tensors."""
    decoder = load_decoder(folder, numbers=numbers)
    generator = torch.Generator().manual_seed(7)
    lora = TrainableLora(decoder.slots, config, generator=generator)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    network: LowRank = Apart(lora) if apart else lora
    hidden = decoder.forward(TOKENS, POSITIONS, ATTEND, network)
    upstream = torch.randn(hidden.shape, generator=generator)
    return hidden, *torch.autograd.grad(hidden, list(lora.parameters()), upstream)


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2", "qwen3"])
@pytest.mark.parametrize("everywhere", [True, False])
def test_fp32_bits_are_those_of_one_after_the_other(family: str, everywhere: bool, tmp_path: Path) -> None:
    """Nothing that is computed twice or added elsewhere changes a bit; nor do linears without an adapter."""
    make_reference(family, tmp_path)
    targets = targets_of(load_decoder(tmp_path).slots)
    some = tuple(name for name in targets if name in ("q_proj", "down_proj", "o_proj"))
    config = AdapterConfig(4, 8.0, targets if everywhere else some, layers=None if everywhere else (1,))
    together, apart = (gradients(tmp_path, config, apart=way) for way in (False, True))
    assert len(together) > 1
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one, other)


@needs_bf16
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_bf16_rows_lie_near_fp32_rows(family: str, tmp_path: Path) -> None:
    """With rows between products in bf16 too, the gradient stays as near to fp32's as with products alone in bf16."""
    make_reference(family, tmp_path)
    config = AdapterConfig(4, 8.0, targets_of(load_decoder(tmp_path).slots))
    truth, together, products_alone = (
        torch.cat([part.flatten() for part in gradients(tmp_path, config, apart=apart, numbers=numbers)[1:]])
        for apart, numbers in ((True, None), (False, BF16_PRODUCTS), (True, BF16_PRODUCTS))
    )
    ours, before = (float((found - truth).norm() / truth.norm()) for found in (together, products_alone))
    print(f"{family}: rows in bf16 {ours:.2e}, products alone {before:.2e}")
    assert 0 < ours <= 1.5 * before


@needs_bf16
def test_bf16_keeps_less_than_half(tmp_path: Path) -> None:
    """What the backward pass is left in bf16 is at most 0.45 of what fp32 leaves it one after the other."""
    make_reference("llama", tmp_path)
    kept: dict[bool, int] = {}
    for half in (False, True):
        storages: dict[int, int] = {}

        def note(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes() if tensor.shape[:1] == TOKENS.shape else 0
            return tensor

        decoder = load_decoder(tmp_path, numbers=BF16_PRODUCTS if half else None)
        config = AdapterConfig(2, 4.0, targets_of(decoder.slots))
        lora = TrainableLora(decoder.slots, config, generator=torch.Generator().manual_seed(0))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden = decoder.forward(TOKENS, POSITIONS, ATTEND, lora if half else Apart(lora))
        kept[half] = sum(storages.values())
        assert hidden.requires_grad
    print(f"bytes kept: {kept}")
    assert 0 < kept[True] <= 0.45 * kept[False]


@needs_bf16
@pytest.mark.parametrize("rows", [1, 33, 199])
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_is_added_in_place_and_rounded_once(rows: int, turned: bool) -> None:
    """The sum lies where the addend lay, within the last digit of the exact one, for a weight as it is and turned."""
    generator = torch.Generator().manual_seed(rows)
    x, more = (torch.randn(rows, size, generator=generator).to(torch.bfloat16) for size in (96, 64))
    stored = torch.randn((96, 64) if turned else (64, 96), generator=generator).to(torch.bfloat16)
    weight = stored.T if turned else stored
    exact = more.double() + x.double() @ weight.double().T
    y = product_and(more, x, weight)
    assert y.data_ptr() == more.data_ptr()
    assert ((y.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-4).all()


@needs_bf16
def test_a_young_adapter_is_not_rounded_away() -> None:
    """An adapter's part of a thousandth of the product's still acts in bf16: it is added before the one rounding."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 64, generator=generator).to(torch.bfloat16)
    weight = torch.randn(96, 64, generator=generator).to(torch.bfloat16)
    down, up = torch.ones(4, 64) / 64, torch.randn(96, 4, generator=generator)
    frozen, wanted = Frozen(weight, None, torch.bfloat16), (x.double() @ down.double().T) @ up.double().T
    size = 1e-3 * float((x.double() @ weight.double().T).norm() / wanted.norm())

    def out(scale: float) -> Tensor:
        return adapted_linear(x, AsTheyAre(), frozen, Factors(scale, ((0, 96),), (down,), (up,))).double()

    change = (out(size) - out(0.0)).flatten()
    share = float(change @ wanted.flatten() / (size * wanted.square().sum()))
    assert share == pytest.approx(1.0, abs=0.1)
