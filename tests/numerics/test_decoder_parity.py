"""Our decoder against transformers on tiny random models: logits, packing, both longrope regimes, half precision."""

from pathlib import Path

import pytest
import torch
from reference_models import FAMILIES, flat, largest_difference, make_reference, random_documents, reference_logits
from torch import Tensor

from smedje.modeling.attention import DocumentAttention
from smedje.modeling.config import targets_of
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora
from smedje.modeling.transformer import CausalDecoder, Decoder

LENGTHS = (20, 5, 31, 1)
OWNED = [name for name in FAMILIES if name != "gemma3"]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@torch.no_grad()
def packed_logits(decoder: CausalDecoder, documents: list[Tensor]) -> Tensor:
    """Our logits of all documents in one flat stream [T, V]."""
    tokens, positions = flat(documents)
    attend = DocumentAttention([len(document) for document in documents], decoder.shape.windows)
    return decoder.head(decoder.forward(tokens, positions, attend))


@pytest.mark.parametrize("family", OWNED)
def test_logits_of_packed_documents_equal_transformers(family: str, tmp_path: Path) -> None:
    """Documents in one flat stream get the logits that transformers gives each alone, to 1e-4."""
    reference = make_reference(family, tmp_path)
    decoder = load_decoder(tmp_path)
    documents = random_documents(LENGTHS)
    difference = largest_difference(packed_logits(decoder, documents), reference_logits(reference, documents))
    print(f"{family}: largest difference {difference:.1e}")
    assert isinstance(decoder, Decoder)
    assert difference <= 1e-4


@pytest.mark.parametrize("family", ["llama", "mistral-window", "phi3-longrope", "qwen3"])
def test_packed_equals_unpacked(family: str, tmp_path: Path) -> None:
    """A document's hidden states do not depend on its neighbours in the stream."""
    make_reference(family, tmp_path)
    decoder = load_decoder(tmp_path)
    documents = random_documents(LENGTHS)
    alone = torch.cat([packed_logits(decoder, [document]) for document in documents])
    assert largest_difference(packed_logits(decoder, documents), alone) <= 2e-5


@pytest.mark.parametrize("family", list(FAMILIES))
def test_wanted_rows_are_those_of_all(family: str, tmp_path: Path) -> None:
    """Rows asked for alone, in any order and twice too, are the same rows of the whole stream, and so are gradients."""
    make_reference(family, tmp_path)
    decoder = load_decoder(tmp_path)
    documents = random_documents(LENGTHS)
    tokens, positions = flat(documents)
    attend = DocumentAttention([len(document) for document in documents], decoder.shape.windows)
    config = AdapterConfig(rank=2, alpha=2.0, targets=targets_of(decoder.slots))
    lora = TrainableLora(decoder.slots, config, generator=torch.Generator().manual_seed(0))
    for name, tensor in lora.weights().items():
        if ".lora_B." in name:
            tensor.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
    wanted = torch.tensor([40, 3, 3, 56, 19])
    alone = decoder.forward(tokens, positions, attend, lora, wanted=wanted)
    chosen = decoder.forward(tokens, positions, attend, lora).index_select(0, wanted)
    assert alone.shape == chosen.shape
    assert largest_difference(alone.detach(), chosen.detach()) <= 2e-5
    parameters = list(lora.parameters())
    gradients = [torch.autograd.grad(rows.square().sum(), parameters) for rows in (alone, chosen)]
    for mine, all_rows in zip(*gradients, strict=True):
        assert torch.allclose(mine, all_rows, rtol=1e-3, atol=1e-3 * float(all_rows.abs().max()))


@pytest.mark.parametrize("family", ["phi3-longrope", "phi4-mini"])
@pytest.mark.parametrize(("context", "length"), [(32, 32), (200, 33), (200, 150)])
def test_longrope_regimes_equal_transformers(family: str, context: int, length: int, tmp_path: Path) -> None:
    """Up to the original context the short factors rule, beyond it the long ones, as transformers picks by length."""
    reference = make_reference(family, tmp_path)
    decoder = load_decoder(tmp_path, context_length=context)
    documents = random_documents([length])
    difference = largest_difference(packed_logits(decoder, documents), reference_logits(reference, documents))
    print(f"{family}, length {length}: largest difference {difference:.1e}")
    assert difference <= 1e-4


def test_longrope_regime_is_the_deployments_and_not_the_documents(tmp_path: Path) -> None:
    """A short document in a long deployment is computed with the long factors, whatever shares its stream."""
    make_reference("phi3-longrope", tmp_path)
    short, long = (load_decoder(tmp_path, context_length=context) for context in (32, 200))
    document, neighbour = random_documents([20, 150])
    with_neighbour = packed_logits(long, [document, neighbour])[:20]
    assert largest_difference(with_neighbour, packed_logits(long, [document])) <= 2e-5
    assert largest_difference(with_neighbour, packed_logits(short, [document])) > 1e-2


@pytest.mark.parametrize("family", ["mistral-window", "phi3-window", "qwen2-window"])
def test_sliding_windows_matter(family: str, tmp_path: Path) -> None:
    """The window changes the logits of rows beyond it and of no others."""
    make_reference(family, tmp_path)
    decoder = load_decoder(tmp_path)
    window = max(size for size in decoder.shape.windows if size is not None)
    tokens, positions = flat(random_documents([40]))
    with torch.no_grad():
        windowed = decoder.forward(tokens, positions, DocumentAttention([40], decoder.shape.windows))
        unlimited = decoder.forward(tokens, positions, DocumentAttention([40]))
    assert largest_difference(windowed[:window], unlimited[:window]) <= 1e-5
    assert largest_difference(windowed[window:], unlimited[window:]) > 1e-2


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi4-mini"])
def test_half_precision_stays_close(family: str, tmp_path: Path) -> None:
    """In bfloat16 we are no farther from the fp32 logits than transformers is, give or take a fifth."""
    reference = make_reference(family, tmp_path)
    documents = random_documents(LENGTHS)
    exact = reference_logits(reference, documents)
    ours = packed_logits(load_decoder(tmp_path, dtype=torch.bfloat16), documents).float()
    theirs = reference_logits(reference.to(torch.bfloat16), documents).float()
    our_error, their_error = float((ours - exact).norm()), float((theirs - exact).norm())
    print(f"{family}: error {our_error:.3f}, transformers {their_error:.3f}")
    assert our_error <= 1.2 * their_error
