"""Shared prefixes: computed once, and not a number changes but by rounding."""

import random
from array import array
from pathlib import Path

import pytest
import torch
from tests.training_runs import Bench, bench

from smedje.data.batches import flat_batch
from smedje.data.encode import EncodedDataset
from smedje.data.forest import forest, shared_tokens
from smedje.modeling.attention import DocumentAttention
from smedje.modeling.tree_attention import Segment, TreeAttention
from smedje.training.objectives import Sums, supervised, to_tensors


def dataset_of(documents: list[list[int]], *, labelled_from: int = 0) -> EncodedDataset:
    """A dataset of these token lists; tokens from `labelled_from` on are labelled with ragged weights."""
    found = EncodedDataset()
    for line, ids in enumerate(documents, start=1):
        found.tokens.extend(ids)
        found.weights.extend(0.0 if i < labelled_from else 1.0 + (i % 3) / 2 for i in range(len(ids)))
        found.offsets.append(len(found.tokens))
        found.lines.append(line)
        found.groups.append(line)
    return found


def branching(seed: int) -> list[list[int]]:
    """Documents cut from one tree: two levels of shared beginnings, copies, a document that begins another."""
    draw = random.Random(seed)

    def some(count: int) -> list[int]:
        return [draw.randrange(3, 250) for _ in range(count)]

    system, other = some(30), some(12)
    history = system + some(20)
    documents = [history + some(draw.randint(1, 15)) for _ in range(3)]
    documents += [system + some(draw.randint(2, 25)) for _ in range(2)]
    documents += [other + some(9), other + some(4), some(17), list(documents[0]), history[:]]
    draw.shuffle(documents)
    return documents


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(tmp_path_factory.mktemp("prefix"))


@pytest.mark.parametrize("seed", range(5))
def test_the_forest_is_the_documents(seed: int) -> None:
    """Walking from each label up through its segments gives back exactly the documents' prefixes and labels."""
    documents = branching(seed)
    dataset = dataset_of(documents)
    found = forest(dataset, range(len(documents)))
    tokens, positions = found.batch.tokens, found.batch.positions

    def seen_by(row: int) -> list[int]:
        mine = [(s, e) for s, e, end in found.segments if s <= row < e or e <= row < end]
        return [tokens[i] for s, e in mine for i in range(s, min(e, row + 1))]

    expected = sorted(
        (tuple(ids[: i + 1]), ids[i + 1], round(1.0 + ((i + 1) % 3) / 2, 3))
        for ids in documents
        for i in range(len(ids) - 1)
    )
    labels = zip(found.batch.target_rows, found.batch.targets, found.batch.target_weights, strict=True)
    assert sorted((tuple(seen_by(row)), target, round(weight, 3)) for row, target, weight in labels) == expected
    assert all(len(seen_by(row)) == positions[row] + 1 for row in range(len(tokens)))
    assert len(tokens) < found.unshared == sum(len(ids) - 1 for ids in documents)


def test_a_common_beginning_stands_once() -> None:
    """Eight rows with a 50-token system prompt cost the prompt once."""
    draw = random.Random(0)
    system = [draw.randrange(250) for _ in range(50)]
    rows = [[*system, 251, i, *(draw.randrange(250) for _ in range(10))] for i in range(8)]
    found = forest(dataset_of(rows), range(8))
    assert len(found.batch.tokens) <= 51 + 8 * 11
    assert shared_tokens(dataset_of(rows), range(8)) == 51


def test_short_common_beginnings_are_left_alone() -> None:
    """Rows that share fewer than eight tokens stay separate documents."""
    rows = [[1, 2, 3, i, *range(10, 30)] for i in range(4)]
    assert len(forest(dataset_of(rows), range(4)).segments) == 4


@pytest.mark.parametrize("heads", [(4, 4), (9, 3)])
def test_tree_attention_equals_attention_per_document(heads: tuple[int, int]) -> None:
    """Output and all three gradients equal those of the documents laid out one by one, fp32, to 1e-5."""
    torch.manual_seed(0)
    many, few = heads
    prefix, suffixes = 40, (7, 1, 12)
    size = prefix + sum(suffixes)
    q = torch.randn(size, many, 16, requires_grad=True)
    k, v = (torch.randn(size, few, 16, requires_grad=True) for _ in range(2))
    segments, start = [Segment(0, prefix, size)], prefix
    for length in suffixes:
        segments.append(Segment(start, start + length, start + length))
        start += length
    weight = torch.randn(size, many, 16)
    shared = TreeAttention(segments)(0, q, k, v)
    shared_gradients = torch.autograd.grad((shared * weight).sum(), (q, k, v))

    rows = [list(range(prefix)) + list(range(s.start, s.stop)) for s in segments[1:]]
    index = torch.tensor([row for document in rows for row in document])
    apart = DocumentAttention([len(document) for document in rows])(0, q[index], k[index], v[index])
    # A prefix row stands once in the shared stream: its output is weighted once, in the first document alone.
    mask = torch.tensor([float(row >= prefix or place == 0) for place, d in enumerate(rows) for row in d])
    loss = (apart * weight[index] * mask[:, None, None]).sum()
    gradients = torch.autograd.grad(loss, (q, k, v))
    first = torch.tensor([i for i, keep in enumerate(mask.tolist()) if keep])
    assert torch.allclose(shared[index[first]], apart[first], atol=1e-5)
    for ours, theirs in zip(shared_gradients, gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def gradients(place: Bench, dataset: EncodedDataset, *, shared: bool) -> tuple[Sums, torch.Tensor]:
    """Sums and the adapter's gradient of all rows in one stream."""
    _, state = place.prepare()
    torch.manual_seed(1)
    for name, parameter in state.lora.named_parameters():
        if name.endswith("B"):
            torch.nn.init.normal_(parameter, std=0.05)
    rows = range(len(dataset))
    stream = forest(dataset, rows) if shared else flat_batch(dataset, rows)
    sums = supervised(state.decoder, state.lora, to_tensors(stream, "cpu"))
    sums.loss.backward()
    return sums, torch.cat([p.grad.flatten() for p in state.lora.parameters() if p.grad is not None])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("labelled_from", [0, 35])
def test_shared_equals_unshared(place: Bench, seed: int, labelled_from: int) -> None:
    """Loss within 1e-5 and adapter gradient within 1e-4 (cosine >= 0.99999) of the same rows without sharing."""
    dataset = dataset_of(branching(seed), labelled_from=labelled_from)
    ours, shared = gradients(place, dataset, shared=True)
    theirs, plain = gradients(place, dataset, shared=False)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert (ours.count, ours.correct) == (theirs.count, theirs.correct)
    assert ours.weight == pytest.approx(theirs.weight, rel=1e-6)
    assert (shared - plain).norm() <= 1e-4 * plain.norm()
    assert torch.cosine_similarity(shared, plain, dim=0) >= 0.99999
    assert ours.computed < theirs.computed


def test_runs_share_prefixes_unless_told_otherwise(place: Bench, tmp_path: Path) -> None:
    """A run computes fewer tokens than it trains on, and the same losses as with share_prefixes off."""
    shared, _ = place.train()
    plain, _ = place.with_spec(share_prefixes=False).train()
    assert shared[1].computed < shared[1].tokens
    assert plain[1].computed >= plain[1].tokens - 4
    for one, other in zip(shared, plain, strict=True):
        assert (one.train_loss or 0) == pytest.approx(other.train_loss or 0, rel=1e-3)
    dropout = place.with_spec(lora=place.spec.lora.__class__(rank=4, alpha=8.0, dropout=0.1)).train()[0]
    assert dropout[1].computed >= dropout[1].tokens - 4


def test_arrays_are_what_flat_batches_hold() -> None:
    """The forest's stream has the types of any other batch."""
    batch = forest(dataset_of([list(range(20))]), [0]).batch
    assert isinstance(batch.tokens, array)
    assert batch.tokens.typecode == "q"
