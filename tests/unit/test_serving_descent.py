"""Which stretches begin with the same numbers: what the cache records, and which groups a step reads once."""

import random

import pytest
import torch

from smedje.modeling.config import DecoderShape
from smedje.serving.descent import WORTH_SHARING, Descent, Shared, Span, clipped, computed_by, worth_reading_once
from smedje.serving.kv_cache import KVCache

SHAPE = DecoderShape(
    vocab_size=8, hidden_size=4, layers=2, heads=2, kv_heads=1, head_size=2, max_positions=4096, windows=(None, None)
)


@pytest.fixture
def cache() -> KVCache:
    """Places for many tokens."""
    return KVCache(SHAPE, capacity=40_000, dtype=torch.float32, device=torch.device("cpu"))


def begin(cache: KVCache, number: int, tokens: list[int]) -> int:
    """Admit a sequence and compute all of it; how much it took over."""
    assert cache.reserve(number, tokens=len(tokens), limit=4096)
    known = cache.take_over(number, None, tokens[:-1])
    rows = torch.randn(len(tokens) - known, 1, 2)
    for layer in range(SHAPE.layers):
        cache.extend(number, layer, start=known, k=rows, v=-rows)
    cache.learn(number, None, tokens, len(tokens))
    return known


def groups(cache: KVCache, *rows: tuple[int, int]) -> list[Shared]:
    """What a step of these rows, each a sequence and its place, would read once."""
    return worth_reading_once([cache.descent(number, place) for number, place in rows])


def test_a_copy_and_its_source_share_what_was_copied(cache: KVCache) -> None:
    """Two that took over a beginning share it with each other and with who computed it, however all of them grow."""
    system = list(range(400))
    assert [begin(cache, number, [*system, 1000 + number, 7]) for number in range(3)] == [0, 400, 400]
    assert groups(cache, (0, 401), (1, 401), (2, 401)) == [Shared((0, 1, 2), 400)]
    assert cache.reserve(0, tokens=2000, limit=4096)
    assert groups(cache, (0, 1999), (2, 401)) == [Shared((0, 1), 400)]


def test_a_copy_of_a_copy_descends_from_both(cache: KVCache) -> None:
    """A third turn shares the first turn with all who have it, and the second only with the one it came from."""
    first = list(range(300))
    begin(cache, 0, [*first, 7])
    begin(cache, 1, [*first, *range(5000, 5300), 7])
    begin(cache, 2, [*first, *range(5000, 5300), 8, 7])
    assert groups(cache, (0, 301), (1, 601), (2, 601)) == [Shared((0, 1, 2), 300)]
    assert groups(cache, (1, 601), (2, 601)) == [Shared((0, 1), 600)]


def test_equal_tokens_computed_twice_are_not_the_same(cache: KVCache) -> None:
    """Numbers computed separately may differ in the last digit, so nothing is shared."""
    tokens = list(range(500))
    for number in range(2):
        assert cache.reserve(number, tokens=500, limit=500)
        cache.learn(number, None, tokens, 500)
    assert groups(cache, (0, 499), (1, 499)) == []


def test_what_ends_rests_or_is_preempted_leaves_no_group(cache: KVCache) -> None:
    """Copies go on sharing when their source is gone; who is computed again under an old number shares nothing."""
    system = list(range(400))
    for number in range(4):
        begin(cache, number, [*system, 1000 + number, 7])
    cache.rest(0)
    assert groups(cache, (1, 401), (2, 401), (3, 401)) == [Shared((0, 1, 2), 400)]
    begin(cache, 9, [*system, 2000, 7])
    assert groups(cache, (1, 401), (9, 401)) == [Shared((0, 1), 400)]
    cache.free(2)
    assert cache.reserve(2, tokens=402, limit=402)
    assert groups(cache, (1, 401), (2, 401), (3, 401)) == [Shared((0, 2), 400)]
    with pytest.raises(KeyError):
        cache.descent(0, 1)


def test_descents_tell_the_truth_about_the_numbers(cache: KVCache) -> None:
    """Over a random history, all rows of every group hold the same bits up to its length."""
    draw = random.Random(3)
    running: dict[int, list[int]] = {}
    seen = 0
    for number in range(150):
        mother = draw.choice(list(running.values())) if running and draw.random() < 0.8 else []
        tokens = [*mother[: draw.randrange(1200)], *draw.choices(range(50), k=draw.randrange(1, 400))]
        begin(cache, number, tokens)
        running[number] = tokens
        if len(running) > 8:
            gone = draw.choice(list(running))
            (cache.rest if draw.random() < 0.5 else cache.free)(gone)
            del running[gone]
        rows = [(one, len(tokens) - 1) for one, tokens in running.items()]
        for members, length in groups(cache, *rows):
            held = [cache.held_between(rows[row][0], 0, length) for row in members]
            seen += 1
            for layer in range(SHAPE.layers):
                for keys, values in held[1:]:
                    assert torch.equal(keys[layer], held[0][0][layer])
                    assert torch.equal(values[layer], held[0][1][layer])
    assert seen > 50


def test_groups_are_those_that_save_most() -> None:
    """A few that share much and many that share less: each row is in one group, and small savings make none."""
    much, some = Span(0, 1000), Span(5, 300)
    rows: list[Descent] = [(much,), (some,), (Span(0, 1000), Span(7, 1200)), (some,), (some,), computed_by(9)]
    assert worth_reading_once(rows) == [Shared((0, 2), 1000), Shared((1, 3, 4), 300)]
    few = (Span(1, WORTH_SHARING - 1),)
    assert worth_reading_once([few, few]) == []
    assert worth_reading_once([few, few, few]) == [Shared((0, 1, 2), WORTH_SHARING - 1)]
    assert worth_reading_once([(), (), ()]) == worth_reading_once([]) == []


def test_a_descent_is_cut_where_a_row_must_read_alone() -> None:
    """Of the first places only those who computed them are told."""
    whole = (Span(0, 100), Span(3, 250), *computed_by(8))
    assert clipped(whole, 0) == ()
    assert clipped(whole, 100) == (Span(0, 100),)
    assert clipped(whole, 180) == (Span(0, 100), Span(3, 180))
    assert clipped(whole, 400) == (Span(0, 100), Span(3, 250), Span(8, 400))
