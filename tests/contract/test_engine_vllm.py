"""vLLM keeps the promises that every engine must keep: over its HTTP surface, as its own process."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from tests.contract.engine_suite import (
    ADAPTERS,
    CONTEXT,
    GREEDY,
    VOCABULARY,
    EngineSuite,
    complete,
    drive,
    request,
    tiny_model,
    torch_engine,
    write_adapter,
    write_adapters,
)
from tests.vllm_programs import ENVIRONMENT, EXTRA, HIDDEN, vllm_program

from smedje.domain.conversations import Sampling
from smedje.errors import InvalidRequest, Unavailable
from smedje.modeling.transformer import CausalDecoder
from smedje.objects.store import open_objects
from smedje.serving.engine import Engine
from smedje.serving.vllm_engine import VllmEngine, VllmServer
from smedje.serving.vllm_process import VllmOptions, command_line, environment, new_key
from smedje.serving.vllm_worker import neutral_adapter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
START_SECONDS = 300.0
# How far fp32 sums in another order may lie apart.
ROUNDING = 1e-3


@pytest.fixture(scope="module")
def model(folder: Path, objects: Path) -> CausalDecoder:
    """A tiny model, whose adapters are in `objects`."""
    model = tiny_model(folder, hidden=HIDDEN)
    write_adapters(model, objects)
    return model


@pytest.fixture(scope="module")
def server(model: CausalDecoder, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A server that answers, in a folder whose path is short enough for a socket."""
    home = tmp_path_factory.mktemp("vllm")
    with tempfile.TemporaryDirectory(prefix="vllm-", dir="/tmp") as short:
        server = VllmServer(
            socket=Path(short, "s"),
            key=new_key(),
            vocabulary=VOCABULARY,
            adapters=8,
            cache=home / "cache",
            neutral=neutral_adapter(folder, home / "cache"),
        )
        options = VllmOptions(program=vllm_program(home), model=folder, context=CONTEXT, extra=EXTRA, threads=1)
        env = environment(options, server, environ={**os.environ, **ENVIRONMENT})
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(command_line(options, server), env=env, stdout=log, stderr=log)
            try:
                wait_for(server, process, home / "log")
                yield server
            finally:
                process.terminate()
                process.wait(30)


def client(server: VllmServer) -> httpx2.Client:
    """A plain client that knows the key."""
    return httpx2.Client(
        base_url="http://vllm",
        headers={"Authorization": f"Bearer {server.key}"},
        transport=httpx2.HTTPTransport(uds=str(server.socket)),
    )


def wait_for(server: VllmServer, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return once the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(server.socket)) == 0:
                with client(server) as http:
                    assert http.get("/health").status_code == 200
                return
        time.sleep(0.1)
    raise RuntimeError(f"vLLM did not start: {log.read_text(errors='replace')[-3000:]}")


def loaded(server: VllmServer) -> list[str]:
    """The adapters that the server knows."""
    with client(server) as http:
        return [one["id"] for one in http.get("/v1/models").json()["data"][1:]]


@pytest.fixture
def fresh(server: VllmServer, objects: Path) -> Iterator[VllmEngine]:
    """An engine for each test, on the one server, which knows no adapters at its beginning."""
    engine = VllmEngine(server, open_objects(objects.as_uri()))
    yield engine
    engine.close()
    with client(server) as http:
        for name in loaded(server):
            http.post("/v1/unload_lora_adapter", json={"lora_name": name})


class TestVllmEngine(EngineSuite):
    """The shared promises, kept by vLLM."""

    @pytest.fixture
    def engine(self, fresh: VllmEngine) -> Engine:
        """A fresh one for each test."""
        return fresh


def test_tokens_and_chances_are_those_of_our_engine(
    fresh: VllmEngine, model: CausalDecoder, folder: Path, objects: Path
) -> None:
    """In fp32, greedy tokens are equal for base model and adapters, log-probabilities within rounding."""
    ours = torch_engine(model, objects, tokenizer=folder / "tokenizer.json")
    sampling = replace(GREEDY, top_logprobs=3)
    requests = {
        number: replace(request(8 + 5 * number, seed=number, max_tokens=24), sampling=sampling, adapter=key)
        for number, key in enumerate((None, *ADAPTERS))
    }
    theirs = drive(fresh, requests)
    for number, expected in drive(ours, requests).items():
        assert theirs[number].tokens == expected.tokens
        assert theirs[number].usage == expected.usage
        for one, other in zip(theirs[number].logprobs, expected.logprobs, strict=True):
            assert one.token == other.token
            assert one.logprob == pytest.approx(other.logprob, abs=ROUNDING)
            assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=ROUNDING)


def test_a_base_models_row_takes_nothing_from_its_neighbours(
    fresh: VllmEngine, model: CausalDecoder, objects: Path
) -> None:
    """With adapters in all of the server's places, a request without one answers beside them as it does alone."""
    for number in range(9):
        key = f"adapters/place-{number}"
        write_adapter(model, objects / key, seed=20 + number)
        complete(fresh, replace(request(max_tokens=2), adapter=key))
    plain, tuned = request(seed=4, max_tokens=24), replace(request(max_tokens=24), adapter="adapters/place-8")
    together = drive(fresh, {1: plain, 2: tuned})
    ours = torch_engine(model, objects)
    assert together[1].tokens == complete(ours, plain).tokens
    assert together[2].tokens == complete(ours, tuned).tokens


def test_a_drawn_token_has_its_chance_beside_the_likeliest(fresh: VllmEngine) -> None:
    """An unlikely token that was drawn is told with its own log-probability and does not stand among the likeliest."""
    hot = Sampling(temperature=2.0, seed=5, top_logprobs=2)
    done = complete(fresh, replace(request(max_tokens=30), sampling=hot))
    assert [one.token for one in done.logprobs] == list(done.tokens)
    for one in done.logprobs:
        assert len(one.top) == 2
        assert one.top[0][1] >= one.top[1][1]
        assert one.logprob <= one.top[0][1]
    assert any(one.token not in dict(one.top) for one in done.logprobs)


def test_values_that_vllm_bounds_are_refused_with_its_words(fresh: VllmEngine) -> None:
    """A temperature beyond 2 is an invalid value, and what vLLM says about it is told."""
    with pytest.raises(InvalidRequest, match="temperature") as refusal:
        complete(fresh, replace(request(), sampling=Sampling(temperature=3.0)))
    assert refusal.value.code == "invalid_value"


def test_a_seed_of_any_size_is_taken(fresh: VllmEngine) -> None:
    """Negative and huge seeds make a draw repeatable too."""
    for seed in (-1, 2**63, -(2**70)):
        sampling = Sampling(temperature=1.5, seed=seed)
        asked = replace(request(max_tokens=6), sampling=sampling)
        assert complete(fresh, asked).tokens == complete(fresh, asked).tokens


def test_a_long_beginning_is_not_computed_again(fresh: VllmEngine) -> None:
    """The tokens that vLLM took from its cache are told with the counts and summed."""
    first, second = (complete(fresh, request(400, seed=77, max_tokens=2)) for _ in range(2))
    assert first.usage is not None
    assert second.usage is not None
    assert first.usage.cached_tokens == 0
    assert 0 < second.usage.cached_tokens < 400
    assert fresh.stats().reused_tokens == second.usage.cached_tokens
    assert fresh.stats().token_capacity > CONTEXT


def test_adapters_are_loaded_when_asked_for_and_dropped_when_others_are(
    server: VllmServer, objects: Path, fresh: VllmEngine
) -> None:
    """The server knows at most as many as there is room for, the latest ones; one that came back speaks as before."""
    small = VllmEngine(replace(server, adapters=2), open_objects(objects.as_uri()))
    try:
        said = [complete(small, replace(request(), adapter=key)).tokens for key in (*ADAPTERS, ADAPTERS[0])]
        assert said[0] == said[3]
        assert sorted(loaded(server)) == sorted((ADAPTERS[2], ADAPTERS[0]))
        assert small.stats().adapters == 2
    finally:
        small.close()


@pytest.mark.parametrize("kind", ["classifier", "dora"])
def test_what_vllm_cannot_serve_is_refused_by_name(fresh: VllmEngine, objects: Path, kind: str) -> None:
    """A classifier and an adapter with DoRA are invalid adapters for this engine, and nothing is left behind."""
    key = f"adapters/{kind}"
    for path in (objects / ADAPTERS[0]).iterdir():
        (objects / key).mkdir(exist_ok=True)
        text = path.read_bytes()
        (objects / key / path.name).write_bytes(
            text.replace(b'"use_dora": false', b'"use_dora": true') if kind == "dora" else text
        )
    if kind == "classifier":
        (objects / key / "classifier.json").write_text('{"labels": ["a", "b"]}')
    with pytest.raises(InvalidRequest, match=key) as refusal:
        complete(fresh, replace(request(), adapter=key))
    assert refusal.value.code == "invalid_adapter"
    assert fresh.stats().adapters == 0


def test_a_request_to_a_server_that_went_away_is_unavailable(server: VllmServer, objects: Path, tmp_path: Path) -> None:
    """An engine without its server says so, at once."""
    with pytest.raises(Unavailable):
        VllmEngine(replace(server, socket=tmp_path / "none"), open_objects(objects.as_uri()))


def test_nobody_else_may_ask(server: VllmServer) -> None:
    """Without the key nothing is answered, and the key stands on no command line."""
    with client(replace(server, key="another")) as http:
        assert http.post("/v1/completions", json={"model": "base", "prompt": [5]}).status_code == 401
        assert http.get("/v1/models").status_code == 401
    options = VllmOptions(program=Path("vllm"), model=Path("m"), context=None)
    assert not any(server.key in word for word in command_line(options, server))
