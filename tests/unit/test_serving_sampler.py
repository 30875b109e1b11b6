"""The choice of a token from known logits."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smedje.domain.conversations import Sampling
from smedje.serving.engine import GenerationRequest
from smedje.serving.sampler import FIRST_CANDIDATES, Sampler, apply_penalties, draw, logprobs, probabilities
from smedje.serving.sequence import Sequence as TokenSequence

# Probabilities of tokens 0 to 3: none alike, and sums that are exact in binary.
CHANCES = (0.25, 0.1875, 0.5, 0.0625)
LOGITS = torch.tensor(CHANCES).log()


def sequence(number: int, sampling: Sampling, completion: Sequence[int] = ()) -> TokenSequence:
    """A sequence that has chosen some tokens."""
    one = TokenSequence(number, GenerationRequest(tokens=(0,), sampling=sampling), context=10_000)
    for token in completion:
        one.append(token)
    return one


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1.0, CHANCES),
        (0.9, [4 / 15, 3 / 15, 8 / 15, 0]),
        (0.74, [1 / 3, 0, 2 / 3, 0]),
        (0.51, [1 / 3, 0, 2 / 3, 0]),
        (0.49, [0, 0, 1, 0]),
        (0.0, [0, 0, 1, 0]),
    ],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, expected: Sequence[float]) -> None:
    """Tokens outside it have probability exactly 0, those inside keep their proportions."""
    assert probabilities(LOGITS, temperature=1.0, top_p=top_p).tolist() == pytest.approx(expected, abs=1e-6)


def test_temperature_raises_chances_to_its_inverse() -> None:
    """At temperature T the chances are proportional to p ** (1 / T); near 0 the likeliest token takes all."""
    powers = [p**2 for p in CHANCES]
    expected = [power / sum(powers) for power in powers]
    assert probabilities(LOGITS, temperature=0.5, top_p=1.0).tolist() == pytest.approx(expected, abs=1e-6)
    assert probabilities(LOGITS * 50, temperature=1e-5, top_p=1.0).tolist() == [0, 0, 1, 0]
    flat = probabilities(LOGITS, temperature=1e4, top_p=1.0).tolist()
    assert flat == pytest.approx([0.25] * 4, abs=1e-3)


@given(seed=st.integers(0, 10_000), top_p=st.floats(0.01, 0.999), spread=st.floats(0.0, 8.0))
def test_a_nucleus_of_many_is_the_same_as_by_sorting_everything(seed: int, top_p: float, spread: float) -> None:
    """Whether or not the nucleus lies within the first candidates, it is what a whole sort gives."""
    logits = spread * torch.randn(3 * FIRST_CANDIDATES, generator=torch.Generator().manual_seed(seed))
    chances = torch.softmax(logits.double(), dim=0)
    kept = probabilities(logits, temperature=1.0, top_p=top_p) > 0
    assert float(chances[kept].sum()) >= top_p - 1e-5
    if kept.sum() > 1:
        assert float(chances[kept].sum() - chances[kept].min()) < top_p + 1e-5
    if not kept.all():
        assert float(chances[kept].min()) >= float(chances[~kept].max()) * (1 - 1e-5)


def test_a_draw_follows_the_chances() -> None:
    """Over the unit interval each token takes a stretch as long as its chance; one without a chance is never drawn."""
    chances = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    count = 4000
    drawn = [draw(chances, (index + 0.5) / count) for index in range(count)]
    assert [drawn.count(token) / count for token in range(6)] == pytest.approx(chances.tolist())
    assert draw(chances, 0.0) == 1
    assert draw(chances, math.nextafter(1.0, 0.0)) in (1, 3, 4)


def test_penalties_follow_openais_rule() -> None:
    """A token chosen c times loses c * frequency_penalty and, once chosen, presence_penalty; others keep theirs."""
    sampling = Sampling(frequency_penalty=0.5, presence_penalty=1.5)
    penalised = apply_penalties(torch.zeros(5), sampling, [3, 1, 3, 3])
    assert penalised.tolist() == [0.0, -2.0, 0.0, -3.0, 0.0]
    assert apply_penalties(LOGITS, Sampling(), [1, 2]) is LOGITS


def test_log_probabilities_are_normal() -> None:
    """They are the logarithms of the softmax, and the exponentials of all of them sum to 1."""
    logits = torch.stack([LOGITS + 7.0, torch.randn(4, generator=torch.Generator().manual_seed(0))])
    found = logprobs(logits, [3, 1], {0: 2, 1: 4})
    assert found[0].token == 3
    assert found[0].logprob == pytest.approx(math.log(0.0625), abs=1e-6)
    assert found[0].top == ((2, pytest.approx(math.log(0.5))), (0, pytest.approx(math.log(0.25))))
    assert sum(math.exp(value) for _, value in found[1].top) == pytest.approx(1.0, abs=1e-6)
    assert logprobs(logits, [3, 1], {}) == {}


def test_a_sampler_draws_by_the_sequences_own_seed() -> None:
    """Neighbours, ids and order do not matter to a seeded draw; the place in the sequence does."""
    sampling = Sampling(temperature=1.0, seed=5)
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(1))

    def drawn(numbers: Sequence[int], row: int) -> list[int]:
        sampler = Sampler()
        sequences = [sequence(n, sampling if index == row else Sampling(seed=n)) for index, n in enumerate(numbers)]
        rows = logits[0].expand(len(numbers), -1)
        return [sampler.choose(sequences, rows)[row] for _ in range(20)]

    assert drawn([1], 0) == drawn([7, 8, 9], 1) == drawn([3, 2], 1)
    assert len(set(drawn([1], 0))) > 5


def test_a_large_or_negative_seed_is_taken() -> None:
    """Any whole number that a JSON body can carry is a seed."""
    for seed in (-1, 2**63, 2**64 + 3, 0):
        sampler = Sampler()
        assert 0 <= sampler.choose([sequence(1, Sampling(seed=seed))], LOGITS[None])[0] < 4


def test_greedy_takes_the_likeliest_after_penalties() -> None:
    """Temperature 0 needs no luck, with and without penalties."""
    sampler = Sampler()
    plain = sequence(1, Sampling(temperature=0.0), [2, 2])
    penalised = sequence(2, Sampling(temperature=0.0, frequency_penalty=1.0), [2, 2])
    assert sampler.choose([plain, penalised], LOGITS.expand(2, -1)) == [2, 0]


def test_a_freed_sequence_starts_anew() -> None:
    """After free a sequence of the same id draws from its seed's beginning."""
    sampler, one = Sampler(), sequence(1, Sampling(seed=3))
    logits = torch.zeros(1, 1000)
    first = [sampler.choose([one], logits) for _ in range(3)]
    sampler.free(1)
    sampler.free(1)
    assert [sampler.choose([one], logits) for _ in range(3)] == first
