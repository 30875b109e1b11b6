"""Forest attention in bulk: the same as the tree attention of the CPU, forward and backward, and as dense attention."""

import pytest
import torch

from smedje.modeling.attention import DocumentAttention
from smedje.modeling.forest_attention import ForestAttention
from smedje.modeling.tree_attention import Segment, TreeAttention

# One prompt over two branches, one of which branches again; a second tree; a document alone.
FOREST = [
    Segment(0, 5, 30),
    Segment(5, 12, 20),
    Segment(12, 16, 16),
    Segment(16, 20, 20),
    Segment(20, 30, 30),
    Segment(30, 33, 41),
    Segment(33, 36, 36),
    Segment(36, 41, 41),
    Segment(41, 48, 48),
]


def rows_and_gradients(attend, heads: tuple[int, int], *, size: int, seed: int) -> list[torch.Tensor]:
    """Output and gradients of q, k, v for random rows under an Attend."""
    draw = torch.Generator().manual_seed(seed)
    many, few = heads
    q, k, v = (torch.randn(48, h, size, generator=draw).requires_grad_() for h in (many, few, few))
    out = attend(0, q, k, v)
    out.backward(torch.randn(out.shape, generator=draw))
    return [out.detach(), *(t.grad for t in (q, k, v) if t.grad is not None)]


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_bulk_and_tree_attention_agree(heads: tuple[int, int]) -> None:
    """Output and every gradient agree between the two ways of computing a forest."""
    bulk = rows_and_gradients(ForestAttention(FOREST, "cpu"), heads, size=16, seed=1)
    tree = rows_and_gradients(TreeAttention(FOREST), heads, size=16, seed=1)
    for ours, theirs in zip(bulk, tree, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def test_documents_alone_are_plain_causal_attention() -> None:
    """Without anything shared the forest is documents side by side."""
    lengths = [10, 1, 25, 12]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    segments = [Segment(e - n, e, e) for e, n in zip(ends, lengths, strict=True)]
    bulk = rows_and_gradients(ForestAttention(segments, "cpu"), (4, 2), size=8, seed=2)
    plain = rows_and_gradients(DocumentAttention(lengths), (4, 2), size=8, seed=2)
    for ours, theirs in zip(bulk, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def test_half_precision_takes_the_flash_kernels_without_a_copy_to_the_host() -> None:
    """On an accelerator's tensors in bf16 every call fits the kernels' signatures; shapes and types are right."""
    q, k, v = (torch.empty(48, h, 96, dtype=torch.bfloat16, device="meta", requires_grad=True) for h in (8, 8, 8))
    out = ForestAttention(FOREST, "meta")(0, q, k, v)
    assert (out.shape, out.dtype, out.device.type) == (q.shape, torch.bfloat16, "meta")
    out.backward(torch.empty_like(out))
    assert q.grad is not None
    assert q.grad.shape == q.shape
