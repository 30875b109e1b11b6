"""Who runs in the next step, and the places for keys and values that decide it."""

import pytest
import torch

from smedje.domain.conversations import Sampling
from smedje.modeling.config import DecoderShape
from smedje.serving.engine import GenerationRequest
from smedje.serving.kv_cache import STEP, KVCache, bytes_per_token
from smedje.serving.scheduler import Scheduler
from smedje.serving.sequence import Sequence

CONTEXT = 4 * STEP
SHAPE = DecoderShape(
    vocab_size=8, hidden_size=4, layers=2, heads=2, kv_heads=1, head_size=2, max_positions=CONTEXT, windows=(None, None)
)


def cache(capacity: int) -> KVCache:
    """A cache with places for so many tokens."""
    return KVCache(SHAPE, capacity=capacity, dtype=torch.float32, device=torch.device("cpu"))


def sequence(number: int, length: int, *, max_tokens: int | None = None) -> Sequence:
    """A sequence with a prompt of so many tokens, unlike any other's."""
    asked = GenerationRequest(tokens=(number + 1,) * length, sampling=Sampling(), max_tokens=max_tokens)
    return Sequence(number, asked, context=CONTEXT)


def scheduler(capacity: int, *, max_batch_tokens: int = 32, max_sequences: int = 8) -> Scheduler:
    """A scheduler over a cache with places for so many tokens."""
    return Scheduler(cache(capacity), max_batch_tokens=max_batch_tokens, max_sequences=max_sequences)


def step(of: Scheduler) -> list[tuple[int, int, int]]:
    """Plan a step and do what an engine does after it; (sequence, start, count) of each chunk."""
    chunks = of.plan()
    for chunk in chunks:
        chunk.sequence.computed += chunk.count
        if chunk.sequence.pending == 0:
            chunk.sequence.append(2)
    return [(chunk.sequence.id, chunk.start, chunk.count) for chunk in chunks]


class TestScheduler:
    """First come, first served, in one stream."""

    def test_prompts_share_a_step_in_order_of_arrival(self) -> None:
        """A step is filled to its token budget; a prompt that does not fit is taken in pieces."""
        of = scheduler(1000, max_batch_tokens=10)
        for number, length in enumerate((4, 9, 3)):
            of.add(sequence(number, length))
        assert step(of) == [(0, 0, 4), (1, 0, 6)]
        assert step(of) == [(0, 4, 1), (1, 6, 3), (2, 0, 3)]
        assert step(of) == [(0, 5, 1), (1, 9, 1), (2, 3, 1)]

    def test_decodes_go_before_prompts(self) -> None:
        """A long prompt never takes a running completion's row."""
        of = scheduler(1000, max_batch_tokens=4, max_sequences=2)
        of.add(sequence(0, 2))
        step(of)
        of.add(sequence(1, 30))
        assert [step(of) for _ in range(3)] == [[(0, 2 + i, 1), (1, 3 * i, 3)] for i in range(3)]

    def test_no_more_run_than_may(self) -> None:
        """A sequence beyond max_sequences waits until one has ended."""
        of = scheduler(1000, max_sequences=2)
        first, second, third = (sequence(number, 2) for number in range(3))
        for one in (first, second, third):
            of.add(one)
        assert step(of) == [(0, 0, 2), (1, 0, 2)]
        of.remove(first)
        assert step(of) == [(1, 2, 1), (2, 0, 2)]

    def test_a_prompt_of_one_token_runs(self) -> None:
        """The shortest prompt is decoded like any other."""
        of = scheduler(1000)
        of.add(sequence(0, 1))
        assert next(chunk for _ in range(2) for chunk in step(of)) == (0, 0, 1)

    def test_who_comes_first_is_not_overtaken(self) -> None:
        """A prompt that does not fit into memory holds back later, shorter ones."""
        of = scheduler(CONTEXT)
        of.add(sequence(0, STEP))
        of.add(sequence(1, 4 * STEP - 1))
        of.add(sequence(2, 1))
        step(of)
        assert [one.id for one in of.running] == [0]
        assert [one.id for one in of.waiting] == [1, 2]

    def test_the_youngest_makes_room(self) -> None:
        """When a sequence cannot grow, the youngest loses its places and is first in line to be computed again."""
        of = scheduler(4 * STEP, max_batch_tokens=4 * STEP)
        for number in range(3):
            of.add(sequence(number, STEP))
        of.add(sequence(3, STEP // 2))
        step(of)
        assert len(of.running) == 4
        step(of)
        assert [one.id for one in of.running] == [0, 1]
        assert [(one.id, one.computed, len(one.tokens)) for one in of.waiting] == [
            (2, 0, STEP + 1),
            (3, 0, STEP // 2 + 1),
        ]

    def test_a_sequence_that_is_the_youngest_steps_back_itself(self) -> None:
        """Nobody older is preempted for a younger one."""
        of = scheduler(2 * STEP, max_batch_tokens=2 * STEP)
        of.add(sequence(0, STEP // 2))
        of.add(sequence(1, STEP))
        step(of)
        assert step(of) == [(0, STEP // 2, 1)]
        assert [one.id for one in of.waiting] == [1]

    def test_everything_ends_in_a_crowd(self) -> None:
        """Twenty sequences that each want a whole context end, in a cache that holds barely one."""
        of = scheduler(CONTEXT, max_batch_tokens=64)
        everyone = [sequence(number, 3 + number) for number in range(20)]
        for one in everyone:
            of.add(one)
        ended: list[int] = []
        for _ in range(20 * CONTEXT):
            if not of.busy:
                break
            assert step(of), "every step does something"
            for one in [one for one in of.running if len(one.tokens) == one.limit]:
                ended.append(one.id)
                of.remove(one)
        assert ended == list(range(20))

    def test_a_removed_sequence_leaves_nothing(self) -> None:
        """Waiting or running, removal frees it; removing it again is no error."""
        places = cache(1000)
        of = Scheduler(places, max_batch_tokens=32, max_sequences=1)
        running, waiting = sequence(0, 5), sequence(1, 5)
        of.add(running)
        of.add(waiting)
        of.plan()
        for one in (waiting, running, running):
            of.remove(one)
        assert not of.busy
        assert places.held == 0


class TestSequence:
    """Tokens and limits."""

    def test_the_limit_is_the_smaller_of_request_and_context(self) -> None:
        """max_tokens bounds the completion, the context bounds the whole."""
        assert sequence(0, 10, max_tokens=5).limit == 15
        assert sequence(0, 10, max_tokens=10_000).limit == CONTEXT
        assert sequence(0, 10).limit == CONTEXT


class TestKVCache:
    """Places under one budget."""

    def test_a_stretch_grows_and_keeps_what_it_holds(self) -> None:
        """Keys and values written before the growth are read back after it, layer by layer."""
        places = cache(1000)
        written = torch.arange(2.0 * (STEP + 5)).reshape(-1, 1, 2)
        assert places.reserve(1, tokens=STEP, limit=500)
        for layer in range(2):
            places.extend(1, layer, start=0, k=written[:STEP] + layer, v=-written[:STEP] - layer)
        assert places.reserve(1, tokens=STEP + 1, limit=500)
        for layer in range(2):
            keys, values = places.extend(1, layer, start=STEP, k=written[STEP:] + layer, v=-written[STEP:] - layer)
            assert torch.equal(keys, written + layer)
            assert torch.equal(values, -written - layer)

    def test_places_double_up_to_the_limit(self) -> None:
        """Growth is by doubling, so that copying stays a constant share, and never beyond what the request may hold."""
        places = cache(10_000)
        held = []
        for tokens in (10, STEP + 1, 2 * STEP + 1):
            assert places.reserve(1, tokens=tokens, limit=3 * STEP + 7)
            held.append(places.held)
        assert held == [STEP, 2 * STEP, 3 * STEP + 7]

    def test_the_budget_holds(self) -> None:
        """A reservation over the budget is refused and changes nothing; a tight one gets exactly what it needs."""
        places = cache(2 * STEP)
        assert places.reserve(1, tokens=STEP + 3, limit=CONTEXT)
        assert places.held == 2 * STEP
        assert not places.reserve(2, tokens=1, limit=CONTEXT)
        assert not places.reserve(1, tokens=2 * STEP + 1, limit=CONTEXT)
        assert places.held == 2 * STEP
        tight = cache(STEP + 3)
        assert tight.reserve(1, tokens=STEP + 3, limit=CONTEXT)
        assert tight.held == STEP + 3

    def test_freed_places_are_free_at_once(self) -> None:
        """free gives back all that a sequence held; an unknown sequence is no error."""
        places = cache(STEP)
        assert places.reserve(1, tokens=5, limit=CONTEXT)
        places.free(1)
        places.free(1)
        assert places.held == 0
        assert places.reserve(2, tokens=STEP, limit=CONTEXT)

    @pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 32), (torch.bfloat16, 16)])
    def test_memory_of_a_token(self, dtype: torch.dtype, size: int) -> None:
        """Keys and values, layers, key heads, head size, bytes a value."""
        assert bytes_per_token(SHAPE, dtype=dtype) == size
