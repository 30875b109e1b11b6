"""Our decoder against transformers on tiny random models: logits, packing, weights in and out."""

from pathlib import Path

import pytest
import torch
from reference_models import FAMILIES, flat, largest_difference, make_reference, random_documents, reference_logits

from smedje.modeling.attention import DocumentAttention
from smedje.modeling.load import load_decoder
from smedje.modeling.transformer import Decoder

LENGTHS = (20, 5, 31, 1)
OWNED = [name for name in FAMILIES if name != "gemma3"]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("family", OWNED)
def test_logits_of_packed_documents_equal_transformers(family: str, tmp_path: Path) -> None:
    """Documents in one flat stream get the logits that transformers gives each alone, to 1e-4."""
    reference = make_reference(family, tmp_path)
    decoder = load_decoder(tmp_path)
    documents = random_documents(LENGTHS)
    tokens, positions = flat(documents)
    with torch.no_grad():
        logits = decoder.head(decoder(tokens, positions, DocumentAttention(LENGTHS, decoder.shape.windows)))
    difference = largest_difference(logits, reference_logits(reference, documents))
    print(f"{family}: largest difference {difference:.1e}")
    assert isinstance(decoder, Decoder)
    assert difference <= 1e-4
