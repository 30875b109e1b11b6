"""Weights in eight bits and in bf16: what the product computes, that adapters stay exact on it, and that the check
refuses."""

import asyncio
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.contract.engine_suite import complete, request, tiny_model, torch_engine, write_adapters
from tests.engine_pools import NAME, Bench
from torch import Tensor

from smedje.modeling.adapter import load_adapter
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.int8 import Int8Weight
from smedje.modeling.load import load_decoder
from smedje.modeling.products import multiplies_bf16, packed, product
from smedje.modeling.served_adapters import SegmentedLora, ServedAdapter
from smedje.modeling.transformer import Decoder
from smedje.serving.weights import Weights, compare, load_served

TOKENS = torch.arange(3, 43)
BF16 = pytest.param("bf16", marks=pytest.mark.skipif(not multiplies_bf16(), reason="no bf16 products here"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's folder, with adapters beside it."""
    folder = tmp_path_factory.mktemp("models") / "model"
    write_adapters(tiny_model(folder), folder.parent / "objects")
    return folder


def rounded(weight: Tensor) -> Tensor:
    """The nearest weight of whole numbers to 127 and one scale a row."""
    scales = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scales).round() * scales


def logits(model: Decoder, lora: SegmentedLora | None = None) -> Tensor:
    """What the model expects after each of TOKENS."""
    with torch.inference_mode():
        attend = DocumentAttention((len(TOKENS),), model.shape.windows)
        return model.head(model.forward(TOKENS, torch.arange(len(TOKENS)), attend, lora))


def own(folder: Path) -> Decoder:
    """Our decoder of a folder."""
    model = load_decoder(folder)
    assert isinstance(model, Decoder)
    return model


@pytest.mark.parametrize("levels", [127, 63])
def test_a_product_is_that_of_the_rounded_weight(levels: int) -> None:
    """With either width of digits, wide rows, rows with one huge number, and rows of zeros."""
    draw = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(96, 64, generator=draw), torch.randn(96, generator=draw)
    x = torch.randn(9, 64, generator=draw)
    x[3, 5] = 400.0
    x[4] = 0.0
    int8 = Int8Weight.of(weight)
    int8._levels = levels
    expected = x @ rounded(weight).T
    allowed = 3e-4 * (127 / levels) ** 2 * x.abs().amax(1, keepdim=True) / 4
    assert ((product(x, int8) - expected).abs() <= allowed * expected.abs().amax()).all()
    assert not product(x, int8)[4].any()
    torch.testing.assert_close(product(x, int8, bias), product(x, int8) + bias)


def test_a_row_does_not_depend_on_its_company() -> None:
    """Each row's result is the same to the last bit alone and beside others of any size."""
    draw = torch.Generator().manual_seed(2)
    int8 = Int8Weight.of(torch.randn(96, 64, generator=draw))
    x = torch.randn(17, 64, generator=draw) * torch.logspace(-3, 3, 17)[:, None]
    together = product(x, int8)
    for row in range(17):
        assert torch.equal(product(x[row : row + 1], int8)[0], together[row])


def test_the_values_cannot_be_read() -> None:
    """Size, type and device are told; anything but a product is an error, never a wrong number."""
    int8 = Int8Weight.of(torch.randn(8, 4))
    assert (int8.shape, int8.dtype, int8.device.type) == ((8, 4), torch.float32, "cpu")
    with pytest.raises(TypeError, match="products alone"):
        int8.sum()
    with pytest.raises(TypeError):
        torch.nn.functional.linear(torch.randn(2, 4), int8)


def test_a_model_in_int8_is_the_model_of_rounded_weights(folder: Path) -> None:
    """Base rows and rows of adapters, within what 15 bits of the rows leave; and it is not the fp32 model."""
    exact, reference, int8 = own(folder), own(folder), own(folder)
    for site in {slot.site for slot in reference.slots}:
        reference.weight(site).copy_(rounded(reference.weight(site)))
    output = rounded(reference.output)
    del reference.output
    reference.output = output
    served, numbers = load_served(folder, "int8")
    assert isinstance(served, Decoder)
    assert numbers == "int8"
    int8 = served
    adapter = load_adapter(folder.parent / "objects" / "adapters" / "red")
    rows = torch.arange(10, 30)
    for adapted in (False, True):
        lora = {
            name: SegmentedLora([(ServedAdapter(model, *adapter), rows)]) if adapted else None
            for name, model in (("exact", exact), ("reference", reference), ("int8", int8))
        }
        got, expected = logits(int8, lora["int8"]), logits(reference, lora["reference"])
        rounding = (logits(exact, lora["exact"]) - expected).abs().max()
        assert (got - expected).abs().max() < rounding / 20


@pytest.mark.parametrize("numbers", [BF16])
def test_a_model_in_bf16_is_near_and_not_equal(folder: Path, numbers: Weights) -> None:
    """It passes the check; weights take half the memory; logits are not rounded to bf16's eight digits."""
    served, found = load_served(folder, numbers)
    assert found == "bf16"
    assert isinstance(served, Decoder)
    assert {served.weight(slot.site).dtype for slot in served.slots} == {torch.bfloat16}
    got, expected = logits(served), logits(own(folder))
    assert 1e-5 < (got - expected).abs().max() / expected.abs().max() < 0.02
    assert not torch.equal(got, got.bfloat16().float())


@pytest.mark.parametrize("numbers", ["int8", BF16])
def test_the_engine_says_the_same_alone_and_in_company(folder: Path, numbers: Weights) -> None:
    """Requests for the base model and adapters, together and one by one, on rounded weights."""
    model, _ = load_served(folder, numbers)
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


def test_a_model_that_loses_by_it_is_served_in_fp32(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows with one weight far above the others, for a number far below: refused, told, and served exactly."""
    ruined = tmp_path / "ruined"
    ruined.mkdir()
    for path in folder.iterdir():
        (ruined / path.name).write_bytes(path.read_bytes())
    state = load_file(ruined / "model.safetensors")
    for name, tensor in state.items():
        if name.endswith(("layernorm.weight", "model.norm.weight")):
            tensor[0] /= 3000
        elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
            tensor[:, 0] *= 3000
    save_file(state, ruined / "model.safetensors", metadata={"format": "pt"})
    served, numbers = load_served(ruined, "int8")
    told = capsys.readouterr().out
    assert numbers == "fp32"
    assert "int8 weights are refused" in told
    assert "at most" in told
    plain = own(ruined)
    plain.pack()
    assert isinstance(served, Decoder)
    assert torch.equal(logits(served), logits(plain))


def test_likeness_counts_what_differs() -> None:
    """Equal probabilities are alike; moved ones show in all three figures; what is no number never passes."""
    same = torch.randn(6, 20, generator=torch.Generator().manual_seed(3)).log_softmax(1)
    document = [1, 2, 3, 4, 5, 6]
    alike = compare([document], [same], [same])
    assert alike.agreement == 1.0
    assert [alike.divergence, alike.perplexity_ratio] == pytest.approx([0.0, 1.0])
    assert alike.passes
    other = compare([document], [same], [same.roll(1, 1)])
    assert other.divergence > 0.1
    assert other.agreement < 0.5
    assert not other.passes
    assert not compare([document], [same], [same * torch.nan]).passes


@pytest.mark.parametrize("numbers", ["fp32", "int8", BF16])
def test_an_engine_process_tells_what_it_serves(folder: Path, tmp_path: Path, numbers: str) -> None:
    """The worker's option reaches the weights: its statistics say so, and its log holds the check."""
    bench = Bench(folder, folder.parent / "objects", tmp_path)

    async def warmed() -> str:
        command = (sys.executable, "-m", "smedje.serving.worker", "--numbers", numbers)
        async with bench.pool(command=command) as pool:
            return (await pool.warm(NAME, folder)).numbers

    assert asyncio.run(warmed()) == numbers
    for kind in ("int8", "bf16"):
        assert (f"{kind} weights against fp32" in bench.log) == (numbers == kind)


def test_packed_fp32_weights_are_no_int8(folder: Path) -> None:
    """The default stays exact: fp32 weights are laid out, not rounded."""
    served, numbers = load_served(folder, "fp32")
    assert numbers == "fp32"
    assert isinstance(served, Decoder)
    torch.testing.assert_close(logits(served), logits(own(folder)), rtol=1e-5, atol=1e-5)
    weight = torch.randn(32, 16)
    x = torch.randn(3, 16)
    torch.testing.assert_close(product(x, packed(weight)), x @ weight.T)
