"""Attention by plain products, and the head that keeps no logits: values and gradients of the plain formulas."""

import pytest
import torch
from torch import Tensor

from smedje.modeling.fused import turn_heads
from smedje.modeling.heads import HeadSizes
from smedje.modeling.tree_attention import Segment, TreeAttention
from smedje.training.losses import row_losses, summed_cross_entropy
from smedje.training.spec import LossSpec


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def reference(q: Tensor, k: Tensor, v: Tensor, segments: list[Segment]) -> Tensor:
    """Softmax attention in fp64 under a mask that says who sees whom."""
    rows, group = q.shape[0], q.shape[1] // k.shape[1]
    seen = torch.zeros(rows, rows, dtype=torch.bool)
    for start, stop, end in segments:
        seen[start:stop, start:stop] = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
        seen[stop:end, start:stop] = True
    keys, values = (part.double().repeat_interleave(group, dim=1) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values)


@pytest.mark.parametrize("heads", [(6, 2), (3, 3)])
@pytest.mark.parametrize(
    "segments",
    [
        [Segment(0, 300, 300)],
        [Segment(0, 97, 97), Segment(97, 450, 450), Segment(450, 460, 460)],
        [Segment(0, 150, 430), Segment(150, 180, 180), Segment(180, 330, 430), Segment(330, 430, 430)],
    ],
)
def test_long_segments_come_out_as_softmax_over_all_they_see(heads: tuple[int, int], segments: list[Segment]) -> None:
    """Blocks, shared prefixes and joins change nothing beyond fp32 rounding, forward and backward."""
    generator = torch.Generator().manual_seed(3)
    rows, (many, few) = segments[-1].end, heads
    q, k, v, upstream = (2 * torch.randn(rows, count, 16, generator=generator) for count in (many, few, few, many))
    inputs = [part.requires_grad_() for part in (q, k, v)]
    wanted = reference(q, k, v, segments)
    expected = torch.autograd.grad(wanted, inputs, upstream.double())
    found = TreeAttention(segments)(0, q, k, v)
    assert torch.allclose(found.double(), wanted, atol=2e-5)
    for ours, theirs in zip(torch.autograd.grad(found, inputs, upstream), expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) <= 2e-6


def test_large_scores_do_not_overflow() -> None:
    """Scores in the thousands, of which exponentials have no number, still give a finite mix."""
    q = torch.full((128, 1, 4), 60.0)
    k = torch.full((128, 1, 4), 60.0) * torch.linspace(0, 1, 128)[:, None, None]
    q.requires_grad_()
    out = TreeAttention([Segment(0, 128, 128)])(0, q, k, torch.ones(128, 1, 4))
    assert torch.allclose(out, torch.ones(128, 1, 4), atol=1e-5)
    (grad,) = torch.autograd.grad(out.sum(), (q,))
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("turned", [16, 10])
@pytest.mark.parametrize("heads", [(6, 2), (3, 3)])
def test_turning_on_the_way_is_turning_before(heads: tuple[int, int], turned: int) -> None:
    """q | k | v side by side, turned while they are laid out, give the rows and gradients of three steps apart."""
    generator = torch.Generator().manual_seed(5)
    (many, few), rows = heads, 170
    sizes = HeadSizes(many, few, 16)
    qkv = torch.randn(rows, (many + 2 * few) * 16, generator=generator, requires_grad=True)
    upstream = torch.randn(rows, many * 16, generator=generator)
    angles = torch.randn(rows, 1, turned // 2, generator=generator)
    attend = TreeAttention([Segment(0, 100, 130), Segment(100, 130, 130), Segment(130, 170, 170)])
    wanted = attend(0, *turn_heads(qkv, angles.cos(), angles.sin(), sizes)).flatten(1)
    found = attend.turn_and_attend(qkv, angles.cos(), angles.sin(), sizes)
    assert torch.allclose(found, wanted, atol=1e-5)
    (expected,) = torch.autograd.grad(wanted, (qkv,), upstream)
    assert torch.allclose(torch.autograd.grad(found, (qkv,), upstream)[0], expected, atol=1e-5)


@pytest.mark.parametrize(("rows", "classes"), [(1, 50), (1500, 50), (300, 3000)])
def test_the_head_without_logits_is_the_head(rows: int, classes: int) -> None:
    """Weighted sum, hits and gradient equal those of the plain formula over all rows at once."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(rows, 24, generator=generator, requires_grad=True)
    weight = torch.randn(classes, 24, generator=generator)
    targets, weights = torch.randint(classes, (rows,), generator=generator), torch.rand(rows, generator=generator)
    logits = hidden @ weight.T
    wanted = (row_losses(logits, targets, LossSpec()) * weights).sum()
    (expected,) = torch.autograd.grad(3 * wanted, (hidden,))
    loss, correct = summed_cross_entropy(lambda x: x @ weight.T, hidden, targets, weights)
    assert torch.allclose(loss, wanted, rtol=1e-6)
    assert correct == int((logits.argmax(-1) == targets).sum())
    assert torch.allclose(torch.autograd.grad(3 * loss, (hidden,))[0], expected, atol=1e-5)
    with torch.inference_mode():
        again, _ = summed_cross_entropy(lambda x: x @ weight.T, hidden, targets, weights)
    assert torch.equal(again, loss.detach())
