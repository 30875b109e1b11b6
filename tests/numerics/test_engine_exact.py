"""The engine computes what the model computes: against transformers, and against itself in every other arrangement."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import VOCABULARY, largest_difference, make_reference
from tests.contract.engine_suite import GREEDY, Completion, complete, drive, torch_engine, write_adapter
from torch import Tensor

from smedje.chat.template import render_prompt
from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.domain.conversations import Sampling
from smedje.modeling.adapter import load_adapter
from smedje.modeling.load import load_decoder
from smedje.modeling.lora import merge_into
from smedje.modeling.transformer import CausalDecoder
from smedje.objects.store import open_objects
from smedje.serving.adapters import AdapterCache
from smedje.serving.engine import GenerationRequest
from smedje.serving.kv_cache import KVCache
from smedje.serving.runner import Runner
from smedje.serving.sequence import Chunk
from smedje.serving.sequence import Sequence as TokenSequence
from smedje.serving.torch_engine import EngineLimits

FAMILIES = ("llama", "mistral-window", "phi3", "phi3-window", "phi4-mini", "qwen2-window", "qwen3", "gemma3")
LIMITS = EngineLimits(context=256, token_capacity=2048, max_batch_tokens=48)
KEYS = ("adapters/one", "adapters/two")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Object storage with two adapters for the llama model."""
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, objects: Path) -> CausalDecoder:
    """A tiny Llama; its adapters are in `objects`."""
    folder = tmp_path_factory.mktemp("llama")
    make_reference("llama", folder)
    model = load_decoder(folder)
    for seed, key in enumerate(KEYS):
        write_adapter(model, objects / key, seed=seed)
    return model


class Bench:
    """A runner with its cache: sequences come in, chunks of them are run."""

    def __init__(self, model: CausalDecoder, objects: Path) -> None:
        device = torch.device("cpu")
        self.cache = KVCache(model.shape, capacity=4096, dtype=torch.float32, device=device)
        self.adapters = AdapterCache(model, open_objects(objects.as_uri()), folder=objects, capacity=4)
        self.runner = Runner(model, self.cache, self.adapters, device=device)
        self._ids = iter(range(1000))

    def sequence(self, tokens: Sequence[int], adapter: str | None = None) -> TokenSequence:
        """A sequence with places and its adapter at hand."""
        asked = GenerationRequest(tokens=tuple(tokens), sampling=GREEDY, adapter=adapter)
        sequence = TokenSequence(next(self._ids), asked, context=256)
        assert self.cache.reserve(sequence.id, tokens=len(tokens), limit=256)
        if adapter is not None:
            self.adapters.acquire(adapter)
        return sequence

    def run(self, *chunks: tuple[TokenSequence, int]) -> Tensor:
        """Run the next so many tokens of each sequence in one step; logits of those that reach their end."""
        logits = self.runner.run([Chunk(sequence, sequence.computed, count) for sequence, count in chunks])
        for sequence, count in chunks:
            sequence.computed += count
        return logits


def tokens(length: int, *, seed: int) -> list[int]:
    """Random token ids."""
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy_by_transformers(reference: Any, prompt: list[int], count: int) -> list[int]:
    """The tokens that transformers' generate adds to a prompt."""
    ids = torch.tensor([prompt])
    # With a mask of its own, generate does not take the chat's end-of-turn tokens for padding.
    whole = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    added: list[int] = whole[0, len(prompt) :].tolist()
    return added


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_transformers(family: str, tmp_path: Path) -> None:
    """Several prompts at once, longer than a step and than a window, give the tokens of transformers' generate."""
    reference = make_reference(family, tmp_path)
    prompts = {number: tokens(length, seed=number) for number, length in enumerate((3, 17, 61))}
    # Phi-4-mini's tiny config changes its positions' factors at 32; an engine keeps one kind (config.rope_regime).
    if family == "phi4-mini":
        prompts = {number: prompt[:12] for number, prompt in prompts.items()}
    engine = torch_engine(load_decoder(tmp_path), tmp_path / "objects", limits=LIMITS)
    requests = {
        number: GenerationRequest(tokens=tuple(prompt), sampling=GREEDY, max_tokens=20)
        for number, prompt in prompts.items()
    }
    done = drive(engine, requests)
    for number, prompt in prompts.items():
        assert list(done[number].tokens) == greedy_by_transformers(reference, prompt, 20)


def test_batched_decode_equals_single_decode(model: CausalDecoder, objects: Path) -> None:
    """Logits of sequences of several lengths that decode together are those of each alone, within 1e-5."""
    bench = Bench(model, objects)
    prompts = [tokens(length, seed=length) for length in (2, 9, 33, 80)]

    def decoded(groups: Sequence[Sequence[list[int]]]) -> Tensor:
        rows = []
        for group in groups:
            sequences = [bench.sequence(prompt) for prompt in group]
            bench.run(*((sequence, len(sequence.tokens) - 1) for sequence in sequences))
            rows.append(bench.run(*((sequence, 1) for sequence in sequences)))
        return torch.cat(rows)

    assert largest_difference(decoded([prompts]), decoded([[prompt] for prompt in prompts])) < 1e-5


@pytest.mark.parametrize("pieces", [[1] * 40, [13, 27], [39, 1], [1, 38, 1], [7, 7, 7, 7, 7, 5]])
def test_a_prompt_in_pieces_equals_the_whole(model: CausalDecoder, objects: Path, pieces: list[int]) -> None:
    """However a prompt is cut, beside whatever neighbour, its last logits and its cache are the same within 1e-5."""
    bench = Bench(model, objects)
    prompt = tokens(40, seed=8)
    whole, cut, neighbour = bench.sequence(prompt), bench.sequence(prompt), bench.sequence(tokens(200, seed=9))
    expected = bench.run((whole, 40))
    for count in pieces:
        logits = bench.run((neighbour, 3), (cut, count))
    assert largest_difference(logits, expected) < 1e-5
    empty = torch.empty(0, model.shape.kv_heads, model.shape.head_size)
    for layer in range(model.shape.layers):
        kept = [bench.cache.extend(sequence.id, layer, start=40, k=empty, v=empty) for sequence in (whole, cut)]
        assert max(largest_difference(*pair) for pair in zip(*kept, strict=True)) < 1e-5


def test_mixed_adapters_equal_separate_runs(model: CausalDecoder, objects: Path) -> None:
    """Rows of the base model and of two adapters in one stream, in any order, give the logits of separate runs."""
    bench = Bench(model, objects)
    plan = [(KEYS[0], 11), (None, 5), (KEYS[1], 20), (KEYS[0], 7), (None, 30)]
    sequences = [bench.sequence(tokens(length, seed=length), adapter) for adapter, length in plan]
    mixed = bench.run(*((sequence, len(sequence.tokens)) for sequence in sequences))
    alone = [bench.sequence(tokens(length, seed=length), adapter) for adapter, length in plan]
    separate = torch.cat([bench.run((sequence, len(sequence.tokens))) for sequence in alone])
    assert largest_difference(mixed, separate) < 1e-5
    base = torch.cat([bench.run((bench.sequence(tokens(n, seed=n)), n)) for _, n in plan])
    assert [largest_difference(mixed[row], base[row]) > 0.1 for row in range(5)] == [key is not None for key, _ in plan]


def test_an_adapter_equals_its_merged_weights(model: CausalDecoder, objects: Path, tmp_path: Path) -> None:
    """Serving an adapter beside the base gives the tokens of a model into whose weights it was merged."""
    make_reference("llama", tmp_path)
    merged = load_decoder(tmp_path)
    merge_into(merged, *load_adapter(objects / KEYS[1]))
    asked = GenerationRequest(tokens=tuple(tokens(25, seed=3)), sampling=GREEDY, max_tokens=30)
    served = complete(torch_engine(model, objects, limits=LIMITS), replace(asked, adapter=KEYS[1]))
    assert served == complete(torch_engine(merged, objects, limits=LIMITS), asked)


def test_log_probabilities_are_the_unmodified_distribution(model: CausalDecoder, objects: Path) -> None:
    """Temperature, top_p and penalties do not show; all tokens' probabilities sum to 1."""
    plain = Sampling(temperature=0.0, top_logprobs=VOCABULARY)
    bent = Sampling(
        temperature=0.3, top_p=0.5, seed=1, top_logprobs=VOCABULARY, frequency_penalty=1.0, presence_penalty=1.0
    )
    asked = GenerationRequest(tokens=tuple(tokens(10, seed=4)), sampling=plain, max_tokens=1)
    engine = torch_engine(model, objects, limits=LIMITS)
    first = complete(engine, asked).logprobs[0]
    assert complete(engine, replace(asked, sampling=bent)).logprobs[0].top == first.top
    chances = torch.tensor([value for _, value in first.top], dtype=torch.float64).exp()
    assert float(chances.sum()) == pytest.approx(1.0, abs=1e-5)
    bench = Bench(model, objects)
    expected = torch.log_softmax(bench.run((bench.sequence(asked.tokens), 10))[0], dim=0)
    assert largest_difference(torch.tensor([dict(first.top)[i] for i in range(VOCABULARY)]), expected) < 1e-5


@pytest.mark.slow
def test_the_embedded_model_says_what_transformers_says(model_home: Path) -> None:
    """SmolLM2's greedy answers, several conversations at once, are transformers' token for token."""
    from transformers import AutoModelForCausalLM

    folder = model_home / "models" / "smollm2-135m-instruct"
    questions = ("What is the capital of France?", "Write one sentence about the sea.", "Name three colours.")
    tokenizer = load_chat_tokenizer(folder)
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": text}]) for text in questions]
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    limits = EngineLimits(context=512, token_capacity=2048, max_batch_tokens=40)
    engine = torch_engine(load_decoder(folder), folder, limits=limits)
    requests = {
        number: GenerationRequest(tokens=tuple(prompt), sampling=GREEDY, max_tokens=16)
        for number, prompt in enumerate(prompts)
    }
    done: dict[int, Completion] = drive(engine, requests)
    for number, prompt in enumerate(prompts):
        assert list(done[number].tokens) == greedy_by_transformers(reference, prompt, 16)
