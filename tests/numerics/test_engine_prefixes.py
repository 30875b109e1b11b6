"""A prompt whose beginning is taken over says what it would say if it had been computed, under a random schedule."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine_suite import (
    ADAPTERS,
    Completion,
    collect,
    complete,
    drive,
    prompt,
    request,
    tiny_model,
    torch_engine,
    write_adapters,
)

from smedje.domain.conversations import Sampling
from smedje.modeling.transformer import CausalDecoder
from smedje.serving.engine import GenerationRequest
from smedje.serving.torch_engine import EngineLimits, TorchEngine

REQUESTS = 300


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Object storage with three adapters."""
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, objects: Path) -> CausalDecoder:
    """A tiny model, whose adapters are in `objects`."""
    model = tiny_model(tmp_path_factory.mktemp("model"))
    write_adapters(model, objects)
    return model


def random_requests(draw: random.Random, count: int) -> dict[int, GenerationRequest]:
    """Prompts that share system prompts and earlier turns, on the base model and two adapters, greedy and seeded."""
    systems = [prompt(length, seed=900 + length) for length in (20, 47, 110)]
    told: list[tuple[int, ...]] = []
    found = {}
    for number in range(count):
        mother = draw.choice(told) if told and draw.random() < 0.4 else draw.choice(systems)
        tokens = (*mother[:180], *prompt(draw.randrange(1, 40), seed=number))
        told.append(tokens)
        sampling = Sampling(temperature=0.0) if draw.random() < 0.5 else Sampling(temperature=1.0, seed=number)
        found[number] = GenerationRequest(
            tokens=tokens,
            sampling=sampling,
            max_tokens=draw.randrange(1, 12),
            adapter=draw.choice([None, None, *ADAPTERS[:2]]),
            project=draw.choice(["one", "two"]),
        )
    return found


def drive_at_random(
    engine: TorchEngine, requests: dict[int, GenerationRequest], draw: random.Random
) -> dict[int, Completion]:
    """Requests come a few at a time, and some are cancelled on the way; the completions of the others."""
    done: dict[int, Completion] = {}
    left, cancelled = list(requests), set[int]()
    while left or not all(done.get(n, Completion()).finish or n in cancelled for n in requests):
        for number in [left.pop(0) for _ in range(min(len(left), draw.choice([0, 0, 1, 3, 6])))]:
            engine.add(number, requests[number])
            if draw.random() < 0.1:
                cancelled.add(number)
        waiting = [n for n in cancelled if not done.get(n, Completion()).finish]
        if waiting and draw.random() < 0.3:
            engine.cancel(draw.choice(waiting))
        collect(engine.step(), done)
    return {number: found for number, found in done.items() if number not in cancelled}


@pytest.mark.parametrize(
    "limits",
    [
        EngineLimits(context=256, token_capacity=16_384, max_batch_tokens=64),
        EngineLimits(context=256, token_capacity=1024, max_batch_tokens=48, max_sequences=6),
    ],
    ids=["roomy", "crowded"],
)
def test_a_cached_beginning_changes_nothing(model: CausalDecoder, objects: Path, limits: EngineLimits) -> None:
    """300 requests in a random schedule with cancels and preemption: each says what it says alone, without a cache."""
    draw = random.Random(limits.token_capacity)
    requests = random_requests(draw, REQUESTS)
    engine = torch_engine(model, objects, limits=limits)
    found = drive_at_random(engine, requests, draw)
    assert len(found) > 0.8 * REQUESTS
    plain = torch_engine(model, objects, limits=replace(limits, reuse=False, token_capacity=16_384))
    expected = {number: complete(plain, requests[number], request_id=number) for number in found}
    assert found == expected
    stats = engine.stats()
    total = sum(len(asked.tokens) for asked in requests.values())
    assert stats.reused_tokens > (0.5 if limits.token_capacity > 2000 else 0.1) * total
    assert (stats.running, stats.waiting, stats.cached_tokens) == (0, 0, 0)
    assert stats.resting_tokens <= limits.token_capacity / 2


def test_usage_tells_what_was_cached(model: CausalDecoder, objects: Path) -> None:
    """The second request with a prompt reports all but its last token as cached, and other adapters report none."""
    engine = torch_engine(model, objects)
    asked = request(100, max_tokens=3)
    first, second = (complete(engine, asked, request_id=number) for number in (1, 2))
    other = complete(engine, replace(asked, adapter=ADAPTERS[0]), request_id=3)
    cached = [done.usage.cached_tokens for done in (first, second, other) if done.usage is not None]
    assert cached == [0, 99, 0]


def test_many_answers_to_one_prompt_cost_one_prefill(model: CausalDecoder, objects: Path) -> None:
    """Eight requests that come together compute their prompt once, and draw what each draws alone."""
    engine = torch_engine(model, objects)
    requests = {
        seed: replace(request(120, max_tokens=6), sampling=Sampling(temperature=1.0, seed=seed)) for seed in range(8)
    }
    together = drive(engine, requests)
    assert engine.stats().reused_tokens == 7 * 119
    plain = torch_engine(model, objects, limits=EngineLimits(context=512, token_capacity=4096, reuse=False))
    assert together == {seed: complete(plain, asked, request_id=seed) for seed, asked in requests.items()}
