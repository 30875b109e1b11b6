"""Grammars in the engine: masks for real tokenizers, exact text, mixed batches, and grammars that fail."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.engine_suite import GREEDY, Completion, drive, request, tiny_model, torch_engine

from smedje.chat.calls import GENERIC
from smedje.chat.grammar import answer_grammar
from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from smedje.domain.conversations import AnswerFormat, FinishReason, Sampling
from smedje.errors import InvalidRequest
from smedje.modeling.transformer import CausalDecoder
from smedje.objects.store import open_objects
from smedje.serving.adapters import AdapterCache
from smedje.serving.engine import GenerationRequest
from smedje.serving.grammar import Grammars
from smedje.serving.sampler import Sampler, apply_grammar, forbidden_tokens
from smedje.serving.sequence import Sequence
from smedje.serving.torch_engine import EngineLimits, TorchEngine

MODELS = {"smollm2-135m-instruct": 49152, "phi-3-tiny-random": 32064}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["bøg", "eg", "🌲"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "old": {"type": "boolean"},
    },
    "required": ["name", "kind", "sizes", "old"],
    "additionalProperties": False,
}


def json_grammar(schema: dict[str, Any], *, strict: bool = True) -> str:
    """The grammar of an answer that is JSON of the schema."""
    grammar = answer_grammar(AnswerFormat(schema=schema, strict=strict), None, GENERIC)
    assert grammar is not None
    return grammar


def valid(text: str) -> bool:
    """Whether text is JSON of SCHEMA."""
    found = json.loads(text)
    return (
        list(found) == list(SCHEMA["properties"])
        and isinstance(found["name"], str)
        and len(found["name"]) <= 12
        and found["kind"] in ("bøg", "eg", "🌲")
        and all(isinstance(size, int) and 0 <= size <= 99 for size in found["sizes"])
        and isinstance(found["old"], bool)
    )


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, model_home: Path) -> Path:
    """An installed base model of each kind of tokenizer: byte-level, and pieces with byte fallback."""
    return model_home / "models" / request.param


def random_text(tokenizer: ChatTokenizer, grammars: Grammars, vocabulary: int, *, seed: int) -> str:
    """What random logits say under the grammar of SCHEMA."""
    constraint = grammars.begin(json_grammar(SCHEMA), tokenizer.stop_ids)
    asked = GenerationRequest(tokens=(5,), sampling=Sampling(seed=seed, temperature=2.0))
    sequence = Sequence(1, asked, context=4096, constraint=constraint)
    noise = torch.Generator().manual_seed(seed)
    sampler = Sampler()
    while (
        token := sampler.choose([sequence], torch.randn(1, vocabulary, generator=noise))[0]
    ) not in tokenizer.stop_ids:
        sequence.append(token)
    return tokenizer.decode(sequence.completion)


def test_random_logits_make_valid_json_to_the_byte(folder: Path) -> None:
    """Whatever the model prefers, the decoded text is JSON of the schema, with characters of several bytes intact."""
    tokenizer, vocabulary = load_chat_tokenizer(folder), MODELS[folder.name]
    grammars = Grammars(folder / "tokenizer.json", vocabulary=vocabulary)
    texts = [random_text(tokenizer, grammars, vocabulary, seed=seed) for seed in range(20)]
    assert all(map(valid, texts)), texts
    assert len(set(texts)) == 20
    assert any("\\" not in text and not text.isascii() for text in texts)


def test_the_tokens_of_a_text_are_allowed_one_by_one(folder: Path) -> None:
    """The ids of valid JSON, compact or indented, pass; after it only stop tokens may come; other texts do not pass."""
    tokenizer = load_chat_tokenizer(folder)
    vocabulary = MODELS[folder.name]
    grammars = Grammars(folder / "tokenizer.json", vocabulary=vocabulary)
    value = {"name": 'Åse "1"', "kind": "🌲", "sizes": [1, 22], "old": False}
    newline = len(tokenizer.encode("\n"))

    def passes(text: str) -> bool:
        constraint = grammars.begin(json_grammar(SCHEMA), tokenizer.stop_ids)
        # After a line break, as templates ask: so no space is put before it.
        for token in [*tokenizer.encode("\n" + text)[newline:], tokenizer.stop_ids[0]]:
            allowed = constraint.allowed()
            assert allowed is not None
            if forbidden_tokens(allowed, torch.empty(vocabulary))[token]:
                return False
            constraint.accept(token)
        return True

    assert passes(json.dumps(value, ensure_ascii=False))
    assert passes(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    assert passes(json.dumps(value, ensure_ascii=False, indent=2))
    assert not passes(json.dumps(value)[:-1])
    assert not passes("  " + json.dumps(value))
    assert not passes(json.dumps(value | {"old": 1}))
    assert not passes(json.dumps(value).replace(", ", ",\n\n\n"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with a byte tokenizer."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def model(tiny: Path) -> CausalDecoder:
    """A tiny model, written into its folder."""
    return tiny_model(tiny)


@pytest.fixture
def engine(model: CausalDecoder, tiny: Path) -> Iterator[TorchEngine]:
    """An engine that can hold answers to grammars, with room for little, so that sequences are preempted."""
    cache = AdapterCache(model, open_objects(tiny.as_uri()), folder=tiny, capacity=1)
    limits = EngineLimits(context=512, token_capacity=700, max_batch_tokens=64, max_sequences=8)
    grammars = Grammars(tiny / "tokenizer.json", vocabulary=model.shape.vocab_size)
    engine = TorchEngine(model, cache, limits, grammars=grammars)
    yield engine
    engine.close()


def text_of(done: Completion) -> str:
    """The text of the byte tokenizer's ids."""
    return bytes(token - 3 for token in done.tokens if 3 <= token < 259).decode("utf-8", "replace")


def test_grammars_touch_only_their_own_rows(engine: TorchEngine, model: CausalDecoder, tmp_path: Path) -> None:
    """In one batch of constrained and free requests the free ones say what they say alone, the others valid JSON,
    the same whether alone or in company, greedy and sampled, though some are preempted half-way."""
    free = {n: request(10, seed=n, max_tokens=60) for n in range(4)}
    stop = frozenset({2})
    held = {
        n: replace(
            request(10, seed=n, max_tokens=400),
            grammar=json_grammar(SCHEMA),
            stop_ids=stop,
            sampling=GREEDY if n % 2 else Sampling(seed=n, temperature=0.7),
        )
        for n in range(4, 8)
    }
    together = drive(engine, {**free, **held})
    plain = torch_engine(model, tmp_path)
    for number, asked in free.items():
        assert together[number] == drive(plain, {number: asked})[number]
    for number, asked in held.items():
        assert together[number] == drive(engine, {number: asked})[number]
        assert together[number].finish is FinishReason.STOP
        assert valid(text_of(together[number])), text_of(together[number])


def test_a_token_limit_leaves_a_beginning(engine: TorchEngine) -> None:
    """Finish `length` and the first tokens of what would have come."""
    asked = replace(request(8, max_tokens=200), grammar=json_grammar(SCHEMA), stop_ids=frozenset({2}))
    whole = drive(engine, {1: asked})[1]
    cut = drive(engine, {2: replace(asked, max_tokens=5)})[2]
    assert (cut.finish, cut.tokens) == (FinishReason.LENGTH, whole.tokens[:5])


def test_log_probabilities_are_the_models_own(engine: TorchEngine) -> None:
    """The token that the grammar forces has the probability that the model gave it, often not the likeliest."""
    sampling = Sampling(temperature=0.0, top_logprobs=3)
    asked = replace(request(8, max_tokens=6), grammar=json_grammar(SCHEMA), stop_ids=frozenset({2}), sampling=sampling)
    first = drive(engine, {1: asked})[1].logprobs[0]
    assert first.token not in [token for token, _ in first.top]
    assert first.logprob < min(logprob for _, logprob in first.top)


def test_a_bias_against_everything_allowed_yields() -> None:
    """Where a bias forbids every token that the grammar allows, the grammar holds and the bias does not."""
    logits = torch.tensor([3.0, 1.0, 2.0])
    forbidden = torch.tensor([True, False, False])
    biased = torch.tensor([3.0, -torch.inf, -torch.inf])
    assert int(apply_grammar(biased, forbidden, otherwise=logits).argmax()) == 2
    assert int(apply_grammar(torch.tensor([3.0, 1.0, -torch.inf]), forbidden, otherwise=logits).argmax()) == 1


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "contains": {"type": "string"}}, "contains"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "string", "minLength": 3, "maxLength": 1}, "Unsatisfiable"),
    ],
)
def test_what_cannot_be_enforced_is_refused_in_words(engine: TorchEngine, schema: dict[str, Any], words: str) -> None:
    """The reason is llguidance's, without the grammar that nobody outside has seen."""
    with pytest.raises(InvalidRequest) as caught:
        engine.add(1, replace(request(), grammar=json_grammar(schema), stop_ids=frozenset({2})))
    assert caught.value.code == "grammar_refused"
    assert words in caught.value.message
    assert "start:" not in caught.value.message
    if "contains" in schema:
        engine.add(2, replace(request(), grammar=json_grammar(schema, strict=False), stop_ids=frozenset({2})))


class _Overwhelmed:
    """A constraint whose grammar gives up after three tokens, as llguidance does past its limits."""

    def __init__(self) -> None:
        self.left = 3

    def allowed(self) -> bytes | None:
        """Everything, then nothing."""
        return b"\xff" * 40 if self.left else None

    def accept(self, token: int) -> None:
        """One less."""
        self.left -= 1


class _OverwhelmedGrammars(Grammars):
    """Begins nothing else."""

    def begin(self, grammar: str, stop_ids: object) -> Any:
        """One that gives up."""
        return _Overwhelmed()


def test_a_grammar_that_gives_up_ends_its_own_request_only(model: CausalDecoder, tmp_path: Path) -> None:
    """The request ends with an error that says so; its neighbours in the batch go on."""
    cache = AdapterCache(model, open_objects(tmp_path.as_uri()), folder=tmp_path, capacity=1)
    limits = EngineLimits(context=512, token_capacity=2048)
    grammars = _OverwhelmedGrammars(tmp_path, vocabulary=model.shape.vocab_size)
    engine = TorchEngine(model, cache, limits, grammars=grammars)
    engine.add(1, replace(request(max_tokens=8), grammar="g"))
    engine.add(2, request(max_tokens=8, seed=2))
    errors, ended = [], []
    while len(errors) + len(ended) < 2 and engine.wait():
        for delivery in engine.step():
            if delivery.chunk.error is not None:
                errors.append((delivery.request_id, delivery.chunk.error.code))
            if delivery.chunk.finish is not None:
                ended.append(delivery.request_id)
    assert (errors, ended) == ([(1, "grammar_too_complex")], [2])


def test_compiling_is_remembered(folder: Path) -> None:
    """The same grammar again is another place in the same compiled grammar: each goes its own way."""
    tokenizer = load_chat_tokenizer(folder)
    grammars = Grammars(folder / "tokenizer.json", vocabulary=MODELS[folder.name])
    one, other = (grammars.begin(json_grammar(SCHEMA), tokenizer.stop_ids) for _ in range(2))
    beginning = one.allowed()
    brace = tokenizer.encode("\n{")[-1]
    one.accept(brace)
    assert one.allowed() != beginning
    assert other.allowed() == beginning
