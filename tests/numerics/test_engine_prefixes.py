"""What requests take over from others, and what they tell of it. Random schedules: test_engine_schedules.py."""

from dataclasses import replace
from pathlib import Path

from tests.contract.engine_suite import (
    ADAPTERS,
    complete,
    drive,
    request,
    torch_engine,
)

from smedje.domain.conversations import Sampling
from smedje.modeling.transformer import CausalDecoder
from smedje.serving.torch_engine import EngineLimits


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
