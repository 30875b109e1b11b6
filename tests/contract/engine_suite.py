"""What every engine must do, tried on a tiny model. A test class inherits it and gives an `engine` fixture.

Also what tests of our own engine share: a tiny model, adapters for it, and a way to drive an engine to the end.
"""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from smedje.domain.conversations import FinishReason, Sampling
from smedje.errors import InvalidRequest, NotFound, Unavailable
from smedje.modeling.adapter import save_adapter
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import AdapterConfig, TrainableLora
from smedje.modeling.tiny_random import write_tiny_llama
from smedje.modeling.transformer import CausalDecoder
from smedje.objects.store import open_objects
from smedje.serving.adapters import AdapterCache
from smedje.serving.engine import GRAMMAR_REFUSED, Delivery, Engine, GenerationRequest, TokenCounts, TokenLogprob
from smedje.serving.grammar import Grammars
from smedje.serving.torch_engine import EngineLimits, TorchEngine

GREEDY = Sampling(temperature=0.0)
VOCABULARY = 320
CONTEXT = 512
ADAPTERS = ("adapters/red", "adapters/green", "adapters/blue")


@dataclass(frozen=True, kw_only=True)
class Completion:
    """All chunks of one request put together."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    stop_token: int | None = None
    usage: TokenCounts | None = None


def prompt(length: int, *, seed: int = 0) -> tuple[int, ...]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())


def request(length: int = 12, *, seed: int = 0, max_tokens: int | None = 8) -> GenerationRequest:
    """A greedy request with a random prompt."""
    return GenerationRequest(tokens=prompt(length, seed=seed), sampling=GREEDY, max_tokens=max_tokens)


def collect(deliveries: Iterable[Delivery], into: dict[int, Completion]) -> None:
    """Append deliveries to the completions that they belong to."""
    for delivery in deliveries:
        so_far, chunk = into.get(delivery.request_id, Completion()), delivery.chunk
        if chunk.error is not None:
            raise chunk.error
        assert so_far.finish is None, "nothing follows the last chunk"
        into[delivery.request_id] = Completion(
            tokens=so_far.tokens + chunk.tokens,
            logprobs=so_far.logprobs + (chunk.logprobs or ()),
            finish=chunk.finish,
            stop_token=chunk.stop_token,
            usage=chunk.usage,
        )


def drive(engine: Engine, requests: Mapping[int, GenerationRequest]) -> dict[int, Completion]:
    """Add all requests, then step until each has its last chunk."""
    for request_id, asked in requests.items():
        engine.add(request_id, asked)
    done: dict[int, Completion] = {}
    while any(request_id not in done or done[request_id].finish is None for request_id in requests):
        advance(engine, done)
    return done


def complete(engine: Engine, asked: GenerationRequest, *, request_id: int = 10_000) -> Completion:
    """One request, alone."""
    return drive(engine, {request_id: asked})[request_id]


def write_adapter(model: CausalDecoder, folder: Path, *, seed: int, size: float = 0.3, rank: int = 4) -> None:
    """A random adapter on all linears, large enough to change what is said."""
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    config = AdapterConfig(rank=rank, alpha=2.0 * rank, targets=targets)
    generator = torch.Generator().manual_seed(seed)
    weights = TrainableLora(model.slots, config, generator=generator).weights()
    for name, tensor in weights.items():
        if ".lora_B." in name:
            tensor.normal_(0.0, size, generator=generator)
    save_adapter(folder, weights, config, "tiny")


def advance(engine: Engine, done: dict[int, Completion]) -> None:
    """Wait until there is something to do, and do it."""
    assert engine.wait()
    collect(engine.step(), done)


def tiny_model(folder: Path, *, hidden: int = 64) -> CausalDecoder:
    """A random two-layer Llama with 320 tokens and 512 positions."""
    torch.set_num_threads(1)
    write_tiny_llama(folder, hidden=hidden)
    return load_decoder(folder)


def write_adapters(model: CausalDecoder, objects: Path) -> None:
    """The three adapters of ADAPTERS, as objects under a local folder."""
    for seed, key in enumerate(ADAPTERS):
        write_adapter(model, objects / key, seed=seed)


def torch_engine(
    model: CausalDecoder,
    objects: Path,
    *,
    adapters: int = 8,
    limits: EngineLimits | None = None,
    tokenizer: Path | None = None,
    missing: Callable[[], int] = lambda: 0,
) -> TorchEngine:
    """Our engine on a model, with adapters from a local folder; with a tokenizer.json it takes grammars. missing: bytes
    that the machine is short of."""
    cache = AdapterCache(model, open_objects(objects.as_uri()), folder=objects / "unused", capacity=adapters)
    grammars = None if tokenizer is None else Grammars(tokenizer, vocabulary=model.shape.vocab_size)
    limits = limits or EngineLimits(context=CONTEXT, token_capacity=8 * CONTEXT)
    return TorchEngine(model, cache, limits, grammars=grammars, missing=missing)


class EngineSuite:
    """The promises of serving.engine.Engine.

    `engine`: serves a model of 320 tokens and 512 positions, with the adapters named in ADAPTERS in its storage.
    """

    def test_a_completion_ends_at_its_token_limit(self, engine: Engine) -> None:
        """max_tokens tokens are delivered, then finish `length` with the counts of prompt and completion."""
        done = complete(engine, request(12, max_tokens=5))
        assert len(done.tokens) == 5
        assert done.finish is FinishReason.LENGTH
        assert done.stop_token is None
        assert done.usage == TokenCounts(prompt_tokens=12, completion_tokens=5)

    def test_a_stop_token_ends_the_text_and_is_counted(self, engine: Engine) -> None:
        """The stop token is named, counted, and not among the tokens; those before it are what they were without it."""
        free = complete(engine, request(max_tokens=12)).tokens
        stop = next(token for token in free if token != free[0])
        before = free[: free.index(stop)]
        done = complete(engine, replace(request(max_tokens=12), stop_ids=frozenset({stop})))
        assert done.tokens == before
        assert (done.finish, done.stop_token) == (FinishReason.STOP, stop)
        assert done.usage == TokenCounts(prompt_tokens=12, completion_tokens=len(before) + 1)

    def test_a_stop_token_at_the_limit_is_a_stop(self, engine: Engine) -> None:
        """When the last allowed token is a stop token, the completion ended by itself."""
        first = complete(engine, request(max_tokens=1)).tokens[0]
        done = complete(engine, replace(request(max_tokens=1), stop_ids=frozenset({first})))
        assert (done.tokens, done.finish, done.stop_token) == ((), FinishReason.STOP, first)

    def test_without_a_token_limit_the_context_is_the_limit(self, engine: Engine) -> None:
        """max_tokens None fills the context."""
        done = complete(engine, request(CONTEXT - 3, max_tokens=None))
        assert (len(done.tokens), done.finish) == (3, FinishReason.LENGTH)

    def test_company_changes_nothing(self, engine: Engine) -> None:
        """Requests that run together say what each says alone, base model and adapters alike."""
        requests = {
            number: replace(
                request(5 + 7 * number, seed=number, max_tokens=6 + number), adapter=(None, *ADAPTERS)[number % 4]
            )
            for number in range(8)
        }
        together = drive(engine, requests)
        alone = {number: complete(engine, asked, request_id=100 + number) for number, asked in requests.items()}
        assert together == alone

    def test_a_late_comer_joins_the_running(self, engine: Engine) -> None:
        """A request added while others run is served beside them, and none of them changes."""
        early, late = request(max_tokens=20), request(30, seed=5, max_tokens=6)
        expected = (complete(engine, early, request_id=1), complete(engine, late, request_id=2))
        done: dict[int, Completion] = {}
        engine.add(3, early)
        while len(done.get(3, Completion()).tokens) < 4:
            advance(engine, done)
        engine.add(4, late)
        while not all(done.get(number, Completion()).finish for number in (3, 4)):
            advance(engine, done)
        assert (done[3], done[4]) == expected

    def test_a_seed_makes_a_draw_repeatable(self, engine: Engine) -> None:
        """The same seed gives the same tokens, another seed others, and no seed a new draw each time."""

        def drawn(seed: int | None, request_id: int) -> tuple[int, ...]:
            sampling = Sampling(temperature=1.5, seed=seed)
            return complete(engine, replace(request(max_tokens=16), sampling=sampling), request_id=request_id).tokens

        assert drawn(7, 1) == drawn(7, 2)
        assert drawn(7, 3) != drawn(8, 4)
        assert len({drawn(None, number) for number in range(5, 9)}) == 4

    def test_a_seeded_draw_does_not_depend_on_company(self, engine: Engine) -> None:
        """Seeded requests that run together draw what each draws alone."""
        requests = {
            seed: replace(
                request(9 + seed, seed=seed), sampling=Sampling(temperature=1.0, top_p=0.9, seed=seed), max_tokens=12
            )
            for seed in range(6)
        }
        together = drive(engine, requests)
        assert {seed: complete(engine, asked) for seed, asked in requests.items()} == together

    def test_log_probabilities_come_when_asked_for(self, engine: Engine) -> None:
        """One per token, the chosen one likeliest when greedy; the probabilities never sum to more than 1."""
        asked = replace(request(max_tokens=5), sampling=Sampling(temperature=0.0, top_logprobs=4))
        done = complete(engine, asked)
        assert [logprob.token for logprob in done.logprobs] == list(done.tokens)
        for logprob in done.logprobs:
            assert len(logprob.top) == 4
            assert logprob.top[0] == (logprob.token, logprob.logprob)
            assert sum(math.exp(value) for _, value in logprob.top) <= 1.0 + 1e-6
        chosen_only = complete(engine, replace(asked, sampling=Sampling(temperature=0.0, top_logprobs=0)))
        assert [logprob.top for logprob in chosen_only.logprobs] == [()] * 5
        assert complete(engine, request()).logprobs == ()

    def test_penalties_keep_tokens_from_coming_again(self, engine: Engine) -> None:
        """A presence penalty bends what a repeating model says, a frequency penalty makes repeats rarer and rarer."""
        free = complete(engine, request(max_tokens=40)).tokens
        assert len(set(free)) < 30, "the tiny model repeats itself, or this shows nothing"
        present = Sampling(temperature=0.0, presence_penalty=2.0)
        frequent = Sampling(temperature=0.0, frequency_penalty=2.0)
        rewarded = Sampling(temperature=0.0, frequency_penalty=-2.0)
        said = [
            complete(engine, replace(request(max_tokens=40), sampling=sampling)).tokens
            for sampling in (present, frequent, rewarded)
        ]
        assert len(set(said[0])) > len(set(free))
        assert len(set(said[1])) == 40
        assert len(set(said[2][-20:])) == 1, "what was said once is said for ever"

    def test_a_bias_moves_the_choice(self, engine: Engine) -> None:
        """A large bias chooses a token, a small one does not show, and -100 keeps the likeliest away."""

        def said(*bias: tuple[int, float]) -> tuple[int, ...]:
            sampling = Sampling(temperature=0.0, logit_bias=bias)
            return complete(engine, replace(request(max_tokens=6), sampling=sampling)).tokens

        free = said()
        assert said((7, 100.0)) == (7,) * 6
        assert said((7, 1e-6)) == free
        assert free[0] not in said((free[0], -100.0))

    def test_a_nucleus_of_nothing_holds_the_likeliest(self, engine: Engine) -> None:
        """top_p 0 is greedy at any temperature."""
        warm = replace(request(), sampling=Sampling(temperature=1.5, top_p=0.0, seed=1))
        assert complete(engine, warm).tokens == complete(engine, request()).tokens

    def test_a_grammar_holds_the_answer(self, engine: Engine) -> None:
        """The answer is a text of the grammar, then a token that ends it; a broken grammar is refused by its code."""
        stops = frozenset({0, 2})
        asked = replace(request(max_tokens=20), grammar='%llguidance {}\nstart: "yes" | "no"\n', stop_ids=stops)
        done = complete(engine, asked)
        # The tiny model's tokenizer has three control tokens and a token for every byte after them.
        assert bytes(token - 3 for token in done.tokens) in (b"yes", b"no")
        assert done.finish is FinishReason.STOP
        assert done.stop_token in stops
        broken = replace(asked, grammar="%llguidance {}\nstart: nothing\n")
        with pytest.raises(InvalidRequest) as refusal:
            complete(engine, broken)
        assert refusal.value.code == GRAMMAR_REFUSED

    def test_an_adapter_changes_its_own_rows_only(self, engine: Engine) -> None:
        """Each adapter speaks its own way."""
        said = {key: complete(engine, replace(request(), adapter=key)).tokens for key in (None, *ADAPTERS)}
        assert len(set(said.values())) == 4

    def test_a_cancelled_request_is_forgotten(self, engine: Engine) -> None:
        """After a cancel the next step frees the places and delivers nothing more of it; others go on."""
        engine.add(1, request(max_tokens=200))
        engine.add(2, request(seed=2, max_tokens=30))
        done: dict[int, Completion] = {}
        while len(done.get(1, Completion()).tokens) < 3:
            advance(engine, done)
        engine.cancel(1)
        while done.get(2, Completion()).finish is None:
            advance(engine, done)
        assert len(done[1].tokens) == 3
        assert done[2] == complete(engine, request(seed=2, max_tokens=30))
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.cached_tokens) == (0, 0, 0)

    def test_cancelling_what_is_not_there_is_no_error(self, engine: Engine) -> None:
        """Unknown and finished ids may be cancelled, also before they were stepped."""
        engine.cancel(77)
        complete(engine, request(), request_id=1)
        engine.cancel(1)
        engine.add(2, request())
        engine.cancel(2)
        assert list(engine.step()) == []
        assert engine.stats().waiting == 0

    @pytest.mark.parametrize(
        ("wrong", "code"),
        [
            (GenerationRequest(tokens=(), sampling=GREEDY), "empty_prompt"),
            (GenerationRequest(tokens=(5, VOCABULARY), sampling=GREEDY), "invalid_token"),
            (GenerationRequest(tokens=(5, -1), sampling=GREEDY), "invalid_token"),
            (request(CONTEXT, max_tokens=None), "context_length_exceeded"),
            (request(CONTEXT - 10, max_tokens=11), "context_length_exceeded"),
            (request(max_tokens=0), "invalid_value"),
            (replace(request(), sampling=Sampling(temperature=-1.0)), "invalid_value"),
            (replace(request(), sampling=Sampling(top_p=1.5)), "invalid_value"),
            (replace(request(), sampling=Sampling(temperature=float("nan"))), "invalid_value"),
        ],
    )
    def test_a_request_that_cannot_run_is_refused(self, engine: Engine, wrong: GenerationRequest, code: str) -> None:
        """The refusal comes from add, with a code, and leaves nothing behind."""
        with pytest.raises(InvalidRequest) as refusal:
            engine.add(1, wrong)
        assert refusal.value.code == code
        assert engine.stats().waiting == 0

    def test_an_unknown_adapter_is_not_found(self, engine: Engine) -> None:
        """The refusal names it and leaves nothing behind."""
        with pytest.raises(NotFound, match="adapters/none"):
            engine.add(1, replace(request(), adapter="adapters/none"))
        stats = engine.stats()
        assert (stats.waiting, stats.adapters) == (0, 0)

    def test_waiting_ends_with_work_and_with_close(self, engine: Engine) -> None:
        """wait blocks an idle engine's thread until a request comes, and returns False once the engine is closed."""
        done: dict[int, Completion] = {}

        def run() -> None:
            while engine.wait():
                collect(engine.step(), done)
                if done.get(1, Completion()).finish is not None:
                    finished.set()

        finished, thread = threading.Event(), threading.Thread(target=run)
        thread.start()
        engine.add(1, request())
        assert finished.wait(30)
        engine.close()
        thread.join(30)
        assert not thread.is_alive()
        with pytest.raises(Unavailable):
            engine.add(2, request())

    def test_requests_come_from_many_threads(self, engine: Engine) -> None:
        """Requests added from several threads while the engine steps are all served, each as if it were alone."""
        requests = {number: request(6 + number, seed=number) for number in range(12)}
        expected = {number: complete(engine, asked, request_id=100 + number) for number, asked in requests.items()}

        def add(numbers: Sequence[int]) -> None:
            for number in numbers:
                engine.add(number, requests[number])

        threads = [threading.Thread(target=add, args=(range(first, 12, 3),)) for first in range(3)]
        for thread in threads:
            thread.start()
        done: dict[int, Completion] = {}
        while len(done) < 12 or any(completion.finish is None for completion in done.values()):
            advance(engine, done)
        for thread in threads:
            thread.join()
        assert done == expected
