"""Beginnings that are kept: the tree that finds them, the cache that keeps them, the schedule that waits for them."""

import random

import torch

from smedje.domain.conversations import Sampling
from smedje.modeling.config import DecoderShape
from smedje.serving.engine import GenerationRequest
from smedje.serving.kv_cache import STEP, KVCache
from smedje.serving.prefixes import BLOCK, PrefixTree, common_length
from smedje.serving.scheduler import Scheduler
from smedje.serving.sequence import Sequence

SHAPE = DecoderShape(
    vocab_size=8, hidden_size=4, layers=2, heads=2, kv_heads=1, head_size=2, max_positions=512, windows=(None, None)
)


def cache(capacity: int, *, reuse: bool = True) -> KVCache:
    """A cache with places for so many tokens."""
    return KVCache(SHAPE, capacity=capacity, dtype=torch.float32, device=torch.device("cpu"), reuse=reuse)


def sequence(number: int, tokens: list[int], *, project: str = "", adapter: str | None = None) -> Sequence:
    """A sequence with this prompt."""
    asked = GenerationRequest(tokens=tuple(tokens), sampling=Sampling(), max_tokens=8, project=project, adapter=adapter)
    return Sequence(number, asked, context=512)


def step(of: Scheduler, room: KVCache) -> list[tuple[int, int, int]]:
    """Plan a step and do what an engine does after it; (sequence, start, count) of each chunk."""
    chunks = of.plan()
    for chunk in chunks:
        one = chunk.sequence
        one.computed += chunk.count
        room.learn(one.id, one.request.adapter, one.tokens, one.computed)
        if one.pending == 0:
            one.append(2)
    return [(chunk.sequence.id, chunk.start, chunk.count) for chunk in chunks]


def test_the_tree_finds_what_a_search_of_all_finds() -> None:
    """Over a random history of owners that grow, are renamed and go, the longest beginning is always found."""
    draw, tree = random.Random(7), PrefixTree()
    held: dict[int, tuple[str | None, list[int]]] = {}
    names = iter(range(1, 100_000))
    for _ in range(1500):
        deed = draw.random()
        if deed < 0.4 or not held:
            mother = draw.choice(list(held.values()))[1] if held and draw.random() < 0.7 else []
            tokens = [*mother[: draw.randrange(120)], *draw.choices(range(2), k=draw.randrange(1, 60))]
            adapter, owner = draw.choice([None, "a"]), next(names)
            half = draw.randrange(len(tokens) + 1)
            tree.extend(owner, adapter, tokens, half)
            tree.extend(owner, adapter, tokens, len(tokens))
            held[owner] = (adapter, tokens)
        elif deed < 0.6:
            owner = draw.choice(list(held))
            held.pop(owner)
            tree.remove(owner)
        elif deed < 0.7:
            owner, name = draw.choice(list(held)), next(names)
            held[name] = held.pop(owner)
            tree.rename(owner, name)
        else:
            wanted_by = draw.choice(list(held.values()))
            wanted = [*wanted_by[1][: draw.randrange(130)], *draw.choices(range(2), k=20)]
            best = max((common_length(tokens, wanted) for key, tokens in held.values() if key == wanted_by[0]))
            owner, count = tree.find(wanted_by[0], wanted)
            assert count == (best if best >= BLOCK else 0)
            if count:
                assert held[owner][0] == wanted_by[0]
                assert held[owner][1][:count] == wanted[:count]
    for owner in list(held):
        tree.remove(owner)
    assert tree.find(None, [0] * 64) == (0, 0)
    assert not tree._roots


def test_a_resting_stretch_is_copied_and_then_makes_room() -> None:
    """An ended sequence's values are taken over to the bit; its places count as free and are given up when wanted."""
    room = cache(4 * STEP)
    tokens = list(range(40))
    assert room.reserve(1, tokens=40, limit=STEP)
    values = torch.randn(40, 1, 2)
    room.extend(1, 0, start=0, k=values, v=-values)
    room.learn(1, None, tokens, 40)
    room.rest(1)
    assert (room.held, room.resting) == (0, STEP)
    assert room.reserve(2, tokens=50, limit=STEP)
    assert room.take_over(2, None, [*tokens[:35], 7, 7, 7]) == 35
    empty = torch.empty(0, 1, 2)
    keys, _ = room.extend(2, 0, start=35, k=empty, v=empty)
    assert torch.equal(keys, values[:35])
    assert room.take_over(2, "another adapter", tokens) == 0
    assert room.reserve(3, tokens=3 * STEP, limit=3 * STEP)
    assert (room.held, room.resting) == (4 * STEP, 0)
    assert room.reusable(None, tokens) == 0


def test_the_longest_unused_gives_way_first() -> None:
    """At most half of the places rest; a beginning that was asked for stays longer than one that was not."""
    room = cache(4 * STEP)
    streams = [[number] * 32 for number in range(3)]
    for number, tokens in enumerate(streams):
        if number == 2:
            assert room.reusable(None, streams[0]) == 32
        assert room.reserve(number, tokens=32, limit=STEP)
        room.learn(number, None, tokens, 32)
        room.rest(number)
    assert room.resting == 2 * STEP
    assert [room.reusable(None, tokens) for tokens in streams] == [32, 0, 32]


def test_nothing_rests_where_reuse_is_off() -> None:
    """Without reuse an ended sequence leaves nothing, and nobody waits for another's beginning."""
    room = cache(8 * STEP, reuse=False)
    of = Scheduler(room, max_batch_tokens=100, max_sequences=8)
    for number in range(2):
        of.add(sequence(number, [1] * 40))
    assert step(of, room) == [(0, 0, 40), (1, 0, 40)]
    of.remove(of.running[0])
    assert (room.resting, room.reusable(None, [1] * 40)) == (0, 0)


def test_a_shared_prompt_is_computed_once() -> None:
    """Sequences that come together with one prompt wait for the first, then compute one token each."""
    room = cache(32 * STEP)
    of = Scheduler(room, max_batch_tokens=60, max_sequences=8)
    for number in range(4):
        of.add(sequence(number, list(range(100))))
    assert step(of, room) == [(0, 0, 60)]
    assert step(of, room) == [(0, 60, 40)]
    assert step(of, room) == [(0, 100, 1), (1, 99, 1), (2, 99, 1), (3, 99, 1)]


def test_another_adapter_shares_nothing() -> None:
    """Keys and values depend on the adapter: the same prompt under another one is computed."""
    room = cache(32 * STEP)
    of = Scheduler(room, max_batch_tokens=200, max_sequences=8)
    for number, adapter in enumerate((None, "red", "red")):
        of.add(sequence(number, list(range(50)), adapter=adapter))
    assert step(of, room) == [(0, 0, 50), (1, 0, 50)]
    assert (2, 49, 1) in step(of, room)


def test_one_who_waits_is_freed_when_the_other_goes() -> None:
    """When the sequence that computes the shared beginning is cancelled, the next one computes on from there."""
    room = cache(32 * STEP)
    of = Scheduler(room, max_batch_tokens=32, max_sequences=8)
    first, second = (sequence(number, list(range(100))) for number in range(2))
    of.add(first)
    of.add(second)
    assert step(of, room) == [(0, 0, 32)]
    of.remove(first)
    assert step(of, room) == [(1, 32, 32)]


def test_projects_take_turns() -> None:
    """A project that asks for much does not keep another waiting: places and prefill go round."""
    room = cache(100 * STEP)
    of = Scheduler(room, max_batch_tokens=20, max_sequences=3)
    for number in range(10):
        of.add(sequence(number, [number] * 12, project="busy"))
    of.add(sequence(10, [10] * 12, project="quiet"))
    assert [number for number, _, _ in step(of, room)] == [0, 10]
    assert [number for number, _, _ in step(of, room)] == [0, 10, 1]


def test_a_long_prompt_is_cut_smaller_beside_running_completions() -> None:
    """Alone a prompt takes the whole step; while others wait for their next token it takes the smaller share."""
    room = cache(100 * STEP)
    of = Scheduler(room, max_batch_tokens=40, max_sequences=3, beside_decodes=10)
    of.add(sequence(0, [0] * 40))
    assert step(of, room) == [(0, 0, 40)]
    of.add(sequence(1, [1] * 40))
    of.add(sequence(2, [2] * 40))
    assert step(of, room) == [(0, 40, 1), (1, 0, 10)]
    assert step(of, room) == [(0, 41, 1), (1, 10, 10)]
