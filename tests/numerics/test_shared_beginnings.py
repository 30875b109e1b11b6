"""Beginnings that rows share are read once, and nothing that is said changes by it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.contract.engine_suite import ADAPTERS, drive, prompt, request, torch_engine
from torch import Tensor

from smedje.modeling.attention import Beginning, cached_attention, decode_attention
from smedje.modeling.config import DecoderShape
from smedje.modeling.transformer import CausalDecoder
from smedje.serving.attend import attention, seen
from smedje.serving.kv_cache import KVCache
from smedje.serving.sequence import Chunk, Sequence
from smedje.serving.torch_engine import EngineLimits

SYSTEM = 400


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("heads", [(9, 3), (4, 4)])
def test_shared_beginnings_change_no_row(heads: tuple[int, int]) -> None:
    """Two groups, one of them scattered, beside rows that share nothing: all as each row over all its keys, to 1e-5."""
    many, few = heads
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return 2 * torch.randn(*size, generator=generator)

    groups = {(1, 2, 3): 130, (0, 5, 7): 17}
    q = random(8, many, 16)
    own = [(random(1, few, count, 16), random(1, few, count, 16)) for count in (5, 1, 40, 3, 90, 1, 7, 2)]
    keys, values = (list(kind) for kind in zip(*own, strict=True))
    begins = {rows: (random(1, few, count, 16), random(1, few, count, 16)) for rows, count in groups.items()}
    picked = {(1, 2, 3): slice(1, 4), (0, 5, 7): torch.tensor([0, 5, 7])}
    found = decode_attention(q, keys, values, [Beginning(picked[rows], *both) for rows, both in begins.items()])
    for rows, (k, v) in begins.items():
        for row in rows:
            keys[row], values[row] = torch.cat((k, keys[row]), 2), torch.cat((v, values[row]), 2)
    assert torch.allclose(found, decode_attention(q, keys, values), atol=1e-5)
    for row in range(8):
        alone = cached_attention(q[row : row + 1], keys[row][0].transpose(0, 1), values[row][0].transpose(0, 1))
        assert torch.allclose(found[row : row + 1], alone, atol=1e-5)


def step_of(windows: tuple[int | None, ...], *, prompts: bool) -> tuple[KVCache, list[Chunk]]:
    """A cache with five sequences, four of them behind one beginning, and the next chunk of each."""
    shape = DecoderShape(
        vocab_size=8, hidden_size=4, layers=2, heads=6, kv_heads=2, head_size=8, max_positions=4096, windows=windows
    )
    cache = KVCache(shape, capacity=9000, dtype=torch.float32, device=torch.device("cpu"))
    chunks = []
    generator = torch.Generator().manual_seed(1)
    for number in range(5):
        begin = prompt(SYSTEM, seed=number // 4)
        tokens = (*begin, *prompt(20 + number, seed=10 + number))
        sequence = Sequence(number, replace(request(), tokens=tokens), context=4096)
        assert cache.reserve(number, tokens=len(tokens), limit=4096)
        known = cache.take_over(number, None, tokens[:-1])
        assert known == (SYSTEM if number in (1, 2, 3) else 0)
        count = 6 if prompts and number in (0, 3) else 1
        for layer in range(2):
            k, v = (torch.randn(len(tokens) - known, 2, 8, generator=generator) for _ in range(2))
            cache.extend(number, layer, start=known, k=k, v=v)
        cache.learn(number, None, tokens, len(tokens))
        chunks.append(Chunk(sequence, len(tokens) - count, count))
    return cache, chunks


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("windows", [(None, None), (None, 64), (4000, SYSTEM + 10)])
def test_a_step_attends_as_each_chunk_alone(windows: tuple[int | None, ...], prompts: bool) -> None:
    """Completions, with and without pieces of prompts between them and with windows, see what each sees alone."""
    cache, chunks = step_of(windows, prompts=prompts)
    generator = torch.Generator().manual_seed(2)
    rows = sum(chunk.count for chunk in chunks)
    attend = attention(cache, chunks, windows)
    for layer, window in enumerate(windows):
        q = torch.randn(rows, 6, 8, generator=generator)
        k, v = (torch.randn(rows, 2, 8, generator=generator) for _ in range(2))
        found, first = attend(layer, q, k, v), 0
        for chunk in chunks:
            some = slice(first, first + chunk.count)
            keys, values = cache.extend(chunk.sequence.id, layer, start=chunk.start, k=k[some], v=v[some])
            alone = cached_attention(q[some], keys, values, window=window)
            assert torch.allclose(found[some], alone, atol=1e-5)
            first = some.stop


def test_the_shared_way_is_taken_where_a_window_allows_it() -> None:
    """Four rows behind one beginning are one group; where a window has left the beginning behind there is none."""
    cache, chunks = step_of((None, None), prompts=False)
    for window in (None, 4000):
        for keys, _, beginnings in seen(cache, chunks, window):
            assert [(found.rows, found.keys.shape[2]) for found in beginnings] == [(slice(0, 4), SYSTEM)]
            assert [one.shape[2] for one in keys] == [20, 21, 22, 23, SYSTEM + 24]
    partly = seen(cache, chunks, SYSTEM + 21)
    assert [(found.rows, found.keys.shape[2]) for found in partly[0][2]] == [(slice(0, 2), SYSTEM)]
    assert all(beginnings == () for _, _, beginnings in seen(cache, chunks, 64))


def test_answers_behind_one_prompt_are_those_of_an_engine_that_shares_nothing(
    model: CausalDecoder, objects: Path
) -> None:
    """With and without an adapter, beside strangers, with preemption and with room for all: the same tokens."""
    system = prompt(SYSTEM)
    requests = {
        number: replace(
            request(max_tokens=12 + 3 * number),
            tokens=(*system, *prompt(5 + number, seed=number)) if number % 5 else prompt(40, seed=number),
            adapter=ADAPTERS[0] if number % 2 else None,
        )
        for number in range(12)
    }
    plain = torch_engine(model, objects, limits=EngineLimits(context=512, token_capacity=8192, reuse=False))
    wanted = {number: done.tokens for number, done in drive(plain, requests).items()}
    for capacity in (8192, 1100):
        engine = torch_engine(model, objects, limits=EngineLimits(context=512, token_capacity=capacity))
        assert {number: done.tokens for number, done in drive(engine, requests).items()} == wanted
        assert engine.stats().reused_tokens > 0
