"""Serving's use of the decoder: chunks and single tokens through a cache give the rows of one full forward pass."""

from pathlib import Path

import pytest
import torch
from reference_models import flat, largest_difference, make_reference, random_documents
from torch import Tensor

from smedje.modeling.attention import DocumentAttention, cached_attention
from smedje.modeling.config import DecoderShape, targets_of
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora, merge_into
from smedje.modeling.served_adapters import SegmentedLora, ServedAdapter
from smedje.modeling.transformer import CausalDecoder

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class GrowingCache:
    """Keys and values of several sequences; rows of one call belong to the sequences in order, `counts` each."""

    def __init__(self, shape: DecoderShape, sequences: int) -> None:
        empty = torch.empty(0, shape.kv_heads, shape.head_size)
        self.windows = shape.windows
        self.kept = {(layer, s): (empty, empty) for layer in range(shape.layers) for s in range(sequences)}
        self.counts: tuple[int, ...] = ()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, start = [], 0
        for sequence, count in enumerate(self.counts):
            if count == 0:
                continue
            part = slice(start, start + count)
            keys, values = (
                torch.cat(pair) for pair in zip(self.kept[layer, sequence], (k[part], v[part]), strict=True)
            )
            self.kept[layer, sequence] = (keys, values)
            out.append(cached_attention(q[part], keys, values, window=self.windows[layer]))
            start += count
        return torch.cat(out)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "phi3-longrope", "qwen2-window", "qwen3", "gemma3"])
def test_cached_steps_equal_a_full_forward(family: str, tmp_path: Path) -> None:
    """Two sequences prefilled in chunks and then decoded together, row by row, match the uncached pass to 1e-4."""
    make_reference(family, tmp_path)
    decoder = load_decoder(tmp_path)
    documents = random_documents([30, 26])
    tokens, positions = flat(documents)
    steps = [(12, 0), (5, 16), *[(1, 1)] * 10, (3, 0)]
    done = [0, 0]
    rows: list[list[Tensor]] = [[], []]
    cache = GrowingCache(decoder.shape, 2)
    with torch.inference_mode():
        wanted = decoder.forward(tokens, positions, DocumentAttention([30, 26], decoder.shape.windows))
        for counts in steps:
            cache.counts = counts
            spans = [torch.arange(d, d + count) for d, count in zip(done, counts, strict=True)]
            chunk = torch.cat([document[span] for document, span in zip(documents, spans, strict=True)])
            hidden = decoder.forward(chunk, torch.cat(spans), cache)
            for sequence, part in enumerate(torch.split(hidden, list(counts))):
                rows[sequence].append(part)
            done = [d + count for d, count in zip(done, counts, strict=True)]
    assert done == [30, 26]
    difference = largest_difference(torch.cat(rows[0] + rows[1]), wanted)
    print(f"{family}: largest difference {difference:.1e}")
    assert difference <= 1e-4


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2", "gemma3"])
def test_packing_changes_the_layout_and_not_the_numbers(family: str, tmp_path: Path) -> None:
    """A packed decoder gives the same hidden states and logits at one row, a few and many, with an adapter too."""
    make_reference(family, tmp_path)
    plain, packed = load_decoder(tmp_path), load_decoder(tmp_path)
    packed.pack()
    config = AdapterConfig(4, 8.0, targets_of(plain.slots))
    weights = {name: 0.1 * torch.ones_like(tensor) for name, tensor in new_weights(plain, config).items()}
    for length in (1, 6, 70):
        tokens, positions = flat(random_documents([length]))
        attend = DocumentAttention([length], plain.shape.windows)
        with torch.inference_mode():
            hidden = [decoder.forward(tokens, positions, attend) for decoder in (plain, packed)]
            assert largest_difference(*hidden) <= 1e-5
            assert largest_difference(*(d.head(h) for d, h in zip((plain, packed), hidden, strict=True))) <= 1e-5
            adapted = []
            for decoder in (plain, packed):
                lora = SegmentedLora([(ServedAdapter(decoder, weights, config), torch.arange(length))])
                adapted.append(decoder.forward(tokens, positions, attend, lora))
            assert largest_difference(*adapted) <= 1e-5
            assert largest_difference(hidden[0], adapted[0]) > 1e-3


def new_weights(decoder: CausalDecoder, config: AdapterConfig) -> dict[str, Tensor]:
    """A fresh adapter's tensors."""
    return TrainableLora(decoder.slots, config, generator=torch.Generator().manual_seed(0)).weights()


def test_a_packed_decoder_refuses_training_and_export(tmp_path: Path) -> None:
    """What packing gave up fails at once, never quietly."""
    make_reference("llama", tmp_path)
    decoder = load_decoder(tmp_path)
    config = AdapterConfig(4, 8.0, targets_of(decoder.slots))
    lora = TrainableLora(decoder.slots, config, generator=torch.Generator().manual_seed(0))
    decoder.pack()
    tokens, positions = flat(random_documents([6]))
    with pytest.raises(AssertionError, match="inference"):
        decoder.forward(tokens, positions, DocumentAttention([6]), lora)
    with pytest.raises(AssertionError, match="packed"):
        decoder.export_state()
    with pytest.raises(AssertionError, match="packed"):
        merge_into(decoder, lora.weights(), config)
