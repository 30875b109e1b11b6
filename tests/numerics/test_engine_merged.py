"""An adapter put into the weights while it is asked alone: the same answers, when it happens, when it ends."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.contract.engine_suite import (
    ADAPTERS,
    CONTEXT,
    Completion,
    collect,
    complete,
    drive,
    request,
    tiny_model,
    torch_engine,
    write_adapter,
    write_adapters,
)
from tests.engine_pools import NAME, Bench

from smedje.domain.conversations import Sampling
from smedje.modeling.adapter import save_adapter
from smedje.modeling.classifier import head_files
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora
from smedje.modeling.transformer import Decoder
from smedje.objects.machine import missing_memory
from smedje.objects.store import open_objects
from smedje.serving.adapters import AdapterCache
from smedje.serving.engine import GenerationRequest
from smedje.serving.merged import Merging, bytes_to_make
from smedje.serving.torch_engine import EngineLimits, TorchEngine

DORA, LABELS = "adapters/dora", "adapters/labels"
TOLD = Sampling(temperature=0.0, top_logprobs=3)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in `model`; in `objects` three adapters, one with DoRA and a classifier's."""
    place = tmp_path_factory.mktemp("merged")
    model = tiny_model(place / "model")
    objects = place / "objects"
    write_adapters(model, objects)
    write_dora(model, objects / DORA)
    write_adapter(model, objects / LABELS, seed=8)
    draw = torch.Generator().manual_seed(4)
    head = torch.randn(3, model.shape.hidden_size, generator=draw)
    for name, data in head_files(head, ("a", "b", "c")).items():
        (objects / LABELS / name).write_bytes(data)
    return place


def write_dora(model: Decoder, folder: Path) -> None:
    """A random adapter with magnitudes that are not those of the base model."""
    config = AdapterConfig(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "up_proj"), dora=True)
    draw = torch.Generator().manual_seed(6)
    weights = TrainableLora(model.slots, config, generator=draw, base=model).weights()
    for name, tensor in weights.items():
        if ".lora_B." in name:
            tensor.normal_(0.0, 0.3, generator=draw)
        elif "magnitude" in name:
            tensor.mul_(1.0 + 0.3 * torch.rand(tensor.shape, generator=draw))
    save_adapter(folder, weights, config, "tiny")


class Served:
    """An engine that merges after three steps of one adapter, and what it has merged."""

    def __init__(
        self,
        folder: Path,
        objects: Path,
        *,
        adapters: int = 8,
        share: float = 0.25,
        source: Path | None = None,
        missing: Callable[[], int] = missing_memory,
    ) -> None:
        model = load_decoder(folder)
        assert isinstance(model, Decoder)
        model.pack()
        cache = AdapterCache(model, open_objects(objects.as_uri()), folder=objects / "unused", capacity=adapters)
        self.merging = Merging(model, cache, folder=source or folder, patience=3, memory_share=share)
        limits = EngineLimits(context=CONTEXT, token_capacity=8 * CONTEXT)
        self.engine = TorchEngine(model, cache, limits, missing=missing)
        self.engine.merge_with(self.merging)

    def warm(self, adapter: str) -> None:
        """Ask one adapter until steps are computed with it in the weights."""
        before = self.engine.stats().merged_steps
        while self.merging.holds != adapter or self.engine.stats().merged_steps == before:
            complete(self.engine, replace(request(seed=50, max_tokens=8), adapter=adapter))


def assert_alike(ours: Completion, theirs: Completion) -> None:
    """Equal tokens, log probabilities within 1e-4."""
    assert (ours.tokens, ours.finish) == (theirs.tokens, theirs.finish)
    for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


@pytest.mark.parametrize("adapter", [ADAPTERS[0], DORA, LABELS])
def test_merged_answers_are_those_of_the_usual_way(place: Path, adapter: str) -> None:
    """Greedy tokens and log probabilities of LoRA, DoRA and a classifier, a prompt in pieces and several at once."""
    served, usual = Served(place / "model", place / "objects"), torch_engine(tiny(place), place / "objects")
    served.warm(adapter)
    requests = {
        number: replace(request(40 * number + 9, seed=number, max_tokens=24), adapter=adapter, sampling=TOLD)
        for number in range(4)
    }
    steps = served.engine.stats().merged_steps
    told, expected = drive(served.engine, requests), drive(usual, requests)
    assert served.engine.stats().merged_steps > steps + 20
    assert usual.stats().merged_steps == 0
    for number in requests:
        assert_alike(told[number], expected[number])


def tiny(place: Path) -> Decoder:
    """The tiny model, plain."""
    model = load_decoder(place / "model")
    assert isinstance(model, Decoder)
    return model


def test_another_adapter_may_come_in_mid_answer(place: Path) -> None:
    """An answer that begins merged goes on beside another adapter's, ends merged, and both are what they are alone."""
    served, usual = Served(place / "model", place / "objects"), torch_engine(tiny(place), place / "objects")
    served.warm(ADAPTERS[0])
    long = replace(request(20, max_tokens=60), adapter=ADAPTERS[0], sampling=TOLD)
    guest = replace(request(15, seed=3, max_tokens=8), adapter=ADAPTERS[1], sampling=TOLD)
    done: dict[int, Completion] = {}
    counts = [served.merging.steps]
    served.engine.add(1, long)
    while len(done.get(1, Completion()).tokens) < 10:
        collect(served.engine.step(), done)
    counts.append(served.merging.steps)
    served.engine.add(2, guest)
    while done.get(2, Completion()).finish is None:
        collect(served.engine.step(), done)
    counts.append(served.merging.steps)
    while done[1].finish is None:
        collect(served.engine.step(), done)
    assert counts[1] - counts[0] == 10
    assert counts[2] == counts[1]
    assert served.merging.steps > counts[2]
    assert_alike(done[1], complete(usual, long))
    assert_alike(done[2], complete(usual, guest))


def test_there_is_one_copy_and_whoever_is_alone_ends_it(place: Path) -> None:
    """Another adapter that is asked alone takes its place; the base model alone ends it."""
    served = Served(place / "model", place / "objects")
    for key in (ADAPTERS[0], ADAPTERS[1]):
        served.warm(key)
        assert served.merging.holds == key
    complete(served.engine, request(max_tokens=2))
    assert served.merging.holds == ADAPTERS[1]
    complete(served.engine, request(max_tokens=4))
    assert served.merging.holds is None


def test_an_adapter_that_is_unloaded_takes_its_copy_along(place: Path) -> None:
    """Too few adapters fit, so the next one's first step finds the copy's adapter gone."""
    served = Served(place / "model", place / "objects", adapters=1)
    served.warm(ADAPTERS[0])
    complete(served.engine, replace(request(max_tokens=1), adapter=ADAPTERS[1]))
    assert served.merging.holds is None


def test_no_copy_is_made_without_memory(place: Path) -> None:
    """Where the free memory's share is too small the usual way goes on; what is asked for counts every number once."""
    served = Served(place / "model", place / "objects", share=1e-12)
    model = tiny(place)
    assert bytes_to_make(model) <= 4 * sum(one.numel() for one in model.parameters()) <= bytes_to_make(model) * 1.01
    complete(served.engine, replace(request(max_tokens=40), adapter=ADAPTERS[0]))
    complete(served.engine, replace(request(max_tokens=40), adapter=ADAPTERS[0]))
    assert served.engine.stats().merged_steps == 0


def test_a_copy_gives_way_to_others(place: Path) -> None:
    """An engine whose machine runs short of memory drops what rests first and then the copy, and answers go on."""
    short = [0]
    served = Served(place / "model", place / "objects", missing=lambda: short[0])
    served.warm(ADAPTERS[0])
    asked = replace(request(100, max_tokens=8), adapter=ADAPTERS[0])
    first = complete(served.engine, asked)
    waiting = threading.Thread(target=served.engine.wait)
    waiting.start()
    try:
        short[0] = 2**40
        deadline = time.monotonic() + 30
        while served.engine.stats().resting_tokens or served.merging.holds:
            assert time.monotonic() < deadline, "nothing was given back"
            time.sleep(0.01)
        steps = served.merging.steps
        assert complete(served.engine, replace(asked, max_tokens=1)).tokens == first.tokens[:1]
        assert served.merging.steps == steps
    finally:
        served.engine.close()
        waiting.join()


def test_a_copy_that_cannot_be_made_costs_nothing_else(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers go on, and the engine's log says why."""
    served = Served(place / "model", place / "objects", source=place / "gone")
    asked = replace(request(max_tokens=40), adapter=ADAPTERS[0])
    first = complete(served.engine, asked)
    while "no copy of the weights" not in capsys.readouterr().out:
        assert complete(served.engine, asked).tokens == first.tokens
    assert served.engine.stats().merged_steps == 0


@pytest.mark.parametrize(("option", "merges"), [((), True), (("--merged", "auto"), True), (("--merged", "off"), False)])
def test_an_engine_process_merges_unless_told_otherwise(
    place: Path, tmp_path: Path, option: tuple[str, ...], merges: bool
) -> None:
    """One adapter asked for 600 steps is put into the weights on the way, and never with `off`."""
    bench = Bench(place / "model", place / "objects", tmp_path)
    asked = replace(request(max_tokens=200), adapter=ADAPTERS[0])

    async def merged_steps() -> int:
        async with bench.pool(command=(sys.executable, "-m", "smedje.serving.worker", *option)) as pool:
            said = [await bench.tokens(pool, asked) for _ in range(3)]
            assert [len(tokens) for tokens in said] == [200] * 3
            return (await pool.warm(NAME, place / "model")).merged_steps

    assert (asyncio.run(merged_steps()) > 0) == merges


@pytest.mark.slow
def test_the_embedded_model_says_the_same_merged(model_home: Path, tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct: greedy tokens equal and log probabilities within 1e-3 of the usual way's."""
    folder = model_home / "models" / "smollm2-135m-instruct"
    model = load_decoder(folder)
    write_adapter(model, tmp_path / ADAPTERS[0], seed=1, size=0.02, rank=16)
    served, usual = Served(folder, tmp_path), torch_engine(model, tmp_path)
    served.warm(ADAPTERS[0])
    draw = torch.Generator().manual_seed(2)
    for length in (5, 70):
        prompt = tuple(torch.randint(100, 40_000, (length,), generator=draw).tolist())
        asked = GenerationRequest(tokens=prompt, sampling=TOLD, max_tokens=24, adapter=ADAPTERS[0])
        steps = served.merging.steps
        told, expected = complete(served.engine, asked), complete(usual, asked)
        assert served.merging.steps > steps
        assert told.tokens == expected.tokens
        for one, other in zip(told.logprobs, expected.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
