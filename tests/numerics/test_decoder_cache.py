"""Serving's use of the decoder: chunks and single tokens through a cache give the rows of one full forward pass."""

from pathlib import Path

import pytest
import torch
from reference_models import flat, largest_difference, make_reference, random_documents
from torch import Tensor

from smedje.modeling.attention import DocumentAttention, cached_attention
from smedje.modeling.config import DecoderShape
from smedje.modeling.load import load_decoder

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
