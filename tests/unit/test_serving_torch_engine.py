"""Our engine keeps the promises that every engine must keep, and a few of its own."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine_suite import (
    ADAPTERS,
    CONTEXT,
    Completion,
    EngineSuite,
    collect,
    complete,
    drive,
    request,
    torch_engine,
    write_adapter,
)

from smedje.modeling.transformer import CausalDecoder
from smedje.serving.engine import Engine
from smedje.serving.torch_engine import EngineLimits


class TestTorchEngine(EngineSuite):
    """The shared promises, kept by our engine."""

    @pytest.fixture
    def engine(self, model: CausalDecoder, folder: Path, objects: Path) -> Engine:
        """A fresh one for each test."""
        return torch_engine(model, objects, tokenizer=folder / "tokenizer.json")


class TestCrowdedTorchEngine(EngineSuite):
    """The shared promises, kept with room for barely more than one context, short steps and few adapters."""

    @pytest.fixture
    def engine(self, model: CausalDecoder, folder: Path, objects: Path) -> Engine:
        """A fresh one for each test."""
        limits = EngineLimits(context=CONTEXT, token_capacity=CONTEXT, max_batch_tokens=16, max_sequences=4)
        return torch_engine(model, objects, adapters=1, limits=limits, tokenizer=folder / "tokenizer.json")


def test_preemption_loses_nothing(model: CausalDecoder, objects: Path) -> None:
    """Requests that outgrow the cache together end as they would alone, seeded draws and log-probabilities included."""
    limits = EngineLimits(context=256, token_capacity=256, max_batch_tokens=64, max_sequences=8)
    sampling = replace(request().sampling, temperature=1.0, seed=3, top_logprobs=2, frequency_penalty=0.2)
    requests = {
        number: replace(request(20 + number, seed=number, max_tokens=150), sampling=sampling) for number in range(4)
    }
    engine = torch_engine(model, objects, limits=limits)
    crowded = drive(engine, requests)
    roomy = torch_engine(model, objects)
    for number, asked in requests.items():
        alone = complete(roomy, asked)
        assert crowded[number].tokens == alone.tokens
        assert crowded[number].usage == alone.usage
        chances = zip(crowded[number].logprobs, alone.logprobs, strict=True)
        assert max(abs(ours.logprob - theirs.logprob) for ours, theirs in chances) < 1e-4
    assert engine.stats().cached_tokens == 0


def test_an_adapter_is_loaded_while_others_run(model: CausalDecoder, objects: Path) -> None:
    """An adapter that was trained after the engine started is served at once, beside a running completion."""
    engine = torch_engine(model, objects)
    running, done = request(max_tokens=40), dict[int, Completion]()
    engine.add(1, running)
    while len(done.get(1, Completion()).tokens) < 2:
        collect(engine.step(), done)
    write_adapter(model, objects / "adapters/fresh", seed=99)
    fresh = replace(request(seed=4), adapter="adapters/fresh")
    engine.add(2, fresh)
    while not all(done.get(number, Completion()).finish for number in (1, 2)):
        collect(engine.step(), done)
    assert done[1] == complete(torch_engine(model, objects), running)
    assert done[2] == complete(torch_engine(model, objects), fresh)
    assert done[2].tokens != complete(engine, replace(fresh, adapter=None)).tokens


def test_stats_count_what_is_there(model: CausalDecoder, objects: Path) -> None:
    """Running, waiting, places, adapters and tokens are counted as they are."""
    limits = EngineLimits(context=CONTEXT, token_capacity=2 * CONTEXT, max_sequences=1)
    engine = torch_engine(model, objects, limits=limits)
    engine.add(1, replace(request(12, max_tokens=3), adapter=ADAPTERS[0]))
    engine.add(2, request(12, max_tokens=3))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.adapters, stats.generated_tokens) == (1, 1, 1, 1)
    assert (stats.cached_tokens, stats.token_capacity) == (15, 2 * CONTEXT)


def test_what_rests_gives_way_to_others(model: CausalDecoder, objects: Path) -> None:
    """An engine that nobody asks anything drops what rests within seconds of the machine's running short of memory, as
    much as is missing; a prompt that begins like an earlier one is computed again then, with the same answer."""
    short = [0]
    engine = torch_engine(model, objects, missing=lambda: short[0])
    asked = request(100, max_tokens=5)
    first = complete(engine, asked)
    assert complete(engine, asked).usage.cached_tokens == 99
    rests = engine.stats().resting_tokens
    waiting = threading.Thread(target=engine.wait)
    waiting.start()
    try:
        for missing, left in ((1, lambda now: 0 < now < rests), (2**40, lambda now: now == 0)):
            short[0] = missing
            deadline = time.monotonic() + 30
            while not left(engine.stats().resting_tokens):
                assert time.monotonic() < deadline, "nothing was given back"
                time.sleep(0.01)
        short[0] = 0
        again = complete(engine, asked)
        assert (again, again.usage.cached_tokens) == (first, 0)
    finally:
        engine.close()
        waiting.join()


def test_the_limit_of_what_rests_is_kept(model: CausalDecoder, objects: Path) -> None:
    """No more places rest than the limits say, and a stretch that is longer does not rest at all."""
    limits = EngineLimits(context=CONTEXT, token_capacity=8 * CONTEXT, resting=150)
    engine = torch_engine(model, objects, limits=limits)
    for seed in range(5):
        complete(engine, request(50, seed=seed, max_tokens=5))
        assert 0 < engine.stats().resting_tokens <= 150
    before = engine.stats().resting_tokens
    complete(engine, request(200, max_tokens=5))
    assert engine.stats().resting_tokens == before
