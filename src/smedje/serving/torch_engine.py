"""Our engine: continuous batching on our decoder, exact, base model and any adapters in one batch.

Knows how requests become sequences and steps become chunks. The parts know the rest: who runs (scheduler), where keys
and values lie (kv_cache), the forward pass (runner), the choice of a token (sampler), adapters (adapters).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smedje.domain.conversations import FinishReason
from smedje.errors import InvalidRequest, Unavailable
from smedje.modeling.transformer import CausalDecoder
from smedje.objects.machine import missing_memory, return_memory
from smedje.serving.adapters import AdapterCache
from smedje.serving.cores import Cores
from smedje.serving.engine import (
    GRAMMAR_REFUSED,
    Delivery,
    EngineStats,
    GenerationRequest,
    TokenChunk,
    TokenLogprob,
    check_request,
)
from smedje.serving.grammar import Grammars
from smedje.serving.kv_cache import KVCache
from smedje.serving.merged import Merging
from smedje.serving.runner import Runner, halves
from smedje.serving.sampler import NO_TOKEN, Sampler, logprobs
from smedje.serving.scheduler import Scheduler
from smedje.serving.sequence import Chunk, Constraint
from smedje.serving.sequence import Sequence as TokenSequence

# How often an engine looks whether others need the memory of what rests.
LOOK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """context: longest sequence in tokens. token_capacity: places for keys and values, at least one whole context.

    reuse: whether prompts take over keys and values of earlier ones that begin alike. resting: places that those of
    ended sequences may keep, and half of all at most.
    max_batch_tokens: rows of one step, decodes and prompt chunks together; a longer prompt is taken in pieces of this
    size. max_prefill_beside: prompt tokens of a step beside decodes; it bounds how long running completions wait for a
    newcomer. max_sequences: completions that run at once.
    """

    context: int
    token_capacity: int
    reuse: bool = True
    resting: int | None = None
    max_batch_tokens: int = 256
    max_prefill_beside: int = 64
    max_sequences: int = 32

    def __post_init__(self) -> None:
        assert self.context <= self.token_capacity, "one whole context must fit into the cache"
        assert self.max_sequences <= self.max_batch_tokens, "every running sequence must get its row in a step"


class TorchEngine:
    """An Engine. `add` and `cancel` leave notes for the next step to read; the rest belongs to the step's thread.

    grammars: what compiles the grammars of requests; without it requests with one are refused. numbers: what the
    model's weights are in, for `stats` to tell. missing: bytes of memory that the machine is short of.
    """

    def __init__(
        self,
        model: CausalDecoder,
        adapters: AdapterCache,
        limits: EngineLimits,
        *,
        grammars: Grammars | None = None,
        numbers: str = "fp32",
        missing: Callable[[], int] = missing_memory,
    ) -> None:
        weight = model.weight(model.slots[0].site)
        self._limits = limits
        self._vocabulary = model.shape.vocab_size
        self._adapters = adapters
        self._grammars = grammars
        self._numbers = numbers
        self._merging: Merging | None = None
        self._cache = KVCache(
            model.shape,
            capacity=limits.token_capacity,
            dtype=model.rows,
            device=weight.device,
            reuse=limits.reuse,
            most_resting=limits.resting,
        )
        self._missing = missing
        self._look_at = 0.0
        self._runner = Runner(model, self._cache, adapters, device=weight.device)
        self._sampler = Sampler()
        self._reentrant = model.reentrant
        self._cores = Cores(torch.get_num_threads())
        self._scheduler = Scheduler(
            self._cache,
            max_batch_tokens=limits.max_batch_tokens,
            max_sequences=limits.max_sequences,
            beside_decodes=limits.max_prefill_beside,
        )
        self._sequences: dict[int, TokenSequence] = {}
        self._generated = 0
        self._reused = 0
        self._notes = threading.Condition()
        self._arrived: deque[TokenSequence] = deque()
        self._cancelled: set[int] = set()
        self._closed = False

    def merge_with(self, merging: Merging) -> None:
        """Let an adapter that is asked alone be put into the weights; to be called before the first step."""
        self._merging = merging

    def add(self, request_id: int, request: GenerationRequest) -> None:
        """See Engine.add."""
        check_request(request, context=self._limits.context, vocabulary=self._vocabulary)
        constraint = self._constraint(request)
        if request.adapter is not None:
            self._adapters.acquire(request.adapter)
        with self._notes:
            if not self._closed:
                self._arrived.append(
                    TokenSequence(request_id, request, context=self._limits.context, constraint=constraint)
                )
                self._notes.notify()
                return
        if request.adapter is not None:
            self._adapters.release(request.adapter)
        raise Unavailable("The engine is stopping. Try again.", code="stopping")

    def cancel(self, request_id: int) -> None:
        """See Engine.cancel."""
        with self._notes:
            self._cancelled.add(request_id)
            self._notes.notify()

    def wait(self) -> bool:
        """See Engine.wait."""
        while True:
            self._give_way()
            with self._notes:
                if self._notes.wait_for(self._called, timeout=LOOK_SECONDS if self._keeps else None):
                    return not self._closed

    def _called(self) -> bool:
        return bool(self._closed or self._arrived or self._cancelled or self._scheduler.busy)

    @property
    def _keeps(self) -> bool:
        """Whether there is anything that others may have."""
        return bool(self._cache.resting or (self._merging is not None and self._merging.holds))

    def _give_way(self) -> None:
        """Drop what rests, or else weights with an adapter in them, when the machine is short of memory; looks at most
        once a second."""
        if not self._keeps or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        if not (missing := self._missing()):
            return
        if self._cache.give_way(missing) or (self._merging is not None and self._merging.give_way()):
            return_memory()

    def step(self) -> list[Delivery]:
        """See Engine.step."""
        self._read_notes()
        chunks = self._scheduler.plan()
        if not chunks:
            return []
        rows = sum(chunk.count for chunk in chunks)
        merged = None
        if self._merging is not None:
            merged = self._merging.decoder_for(chunk.sequence.request.adapter for chunk in chunks)
        divisible = self._reentrant and 1 < len(chunks) < rows
        with self._cores.step(rows, divisible=divisible) as apart:
            streams = [self._in_order(stream) for stream in (halves(chunks) if apart else [chunks])]
            logits = self._runner.run_all(streams, merged)
        for chunk in chunks:
            self._has_run(chunk)
        deliveries: list[Delivery] = []
        for stream, of_stream in zip(streams, logits, strict=True):
            sequences = [chunk.sequence for chunk in stream if not chunk.sequence.pending]
            deliveries += self._take_tokens(sequences, of_stream)
        return deliveries

    def stats(self) -> EngineStats:
        """See Engine.stats."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + len(self._arrived),
            cached_tokens=self._cache.held,
            token_capacity=self._cache.capacity,
            adapters=len(self._adapters),
            generated_tokens=self._generated,
            resting_tokens=self._cache.resting,
            reused_tokens=self._reused,
            preemptions=self._scheduler.preemptions,
            numbers=self._numbers,
            merged_steps=0 if self._merging is None else self._merging.steps,
        )

    def close(self) -> None:
        """See Engine.close."""
        with self._notes:
            self._closed = True
            self._notes.notify()

    def _constraint(self, request: GenerationRequest) -> Constraint | None:
        if request.grammar is None:
            return None
        if self._grammars is None:
            raise InvalidRequest("This engine cannot hold answers to a grammar.", code=GRAMMAR_REFUSED)
        return self._grammars.begin(request.grammar, request.stop_ids)

    def _read_notes(self) -> None:
        with self._notes:
            arrived, cancelled = list(self._arrived), self._cancelled
            self._arrived.clear()
            self._cancelled = set()
        for sequence in arrived:
            self._sequences[sequence.id] = sequence
            self._scheduler.add(sequence)
        for sequence_id in cancelled & self._sequences.keys():
            self._forget(self._sequences[sequence_id])

    def _in_order(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Chunks of one adapter beside each other."""
        return sorted(chunks, key=lambda chunk: self._adapters.order(chunk.sequence.request.adapter))

    def _has_run(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        if chunk.start == sequence.reused:
            self._reused += chunk.start
        sequence.computed += chunk.count
        self._cache.learn(sequence.id, sequence.request.adapter, sequence.tokens, sequence.computed)

    def _take_tokens(self, sequences: Sequence[TokenSequence], logits: Tensor) -> list[Delivery]:
        tokens = self._sampler.choose(sequences, logits)
        failed = [row for row, token in enumerate(tokens) if token == NO_TOKEN]
        if failed:
            deliveries = [self._give_up(sequences[row]) for row in failed]
            rest = [row for row in range(len(tokens)) if row not in failed]
            return deliveries + self._deliver(
                [sequences[row] for row in rest], [tokens[row] for row in rest], logits[rest]
            )
        return self._deliver(sequences, tokens, logits)

    def _give_up(self, sequence: TokenSequence) -> Delivery:
        self._forget(sequence)
        error = InvalidRequest(
            "The schema is too complex to go on with this answer. Use a simpler one.", code="grammar_too_complex"
        )
        return Delivery(request_id=sequence.id, chunk=TokenChunk(error=error))

    def _deliver(self, sequences: Sequence[TokenSequence], tokens: Sequence[int], logits: Tensor) -> list[Delivery]:
        self._generated += len(tokens)
        asked = [sequence.request.sampling.top_logprobs for sequence in sequences]
        known = logprobs(logits, tokens, {row: count for row, count in enumerate(asked) if count is not None})
        deliveries = []
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            finish = sequence.append(token)
            deliveries.append(Delivery(request_id=sequence.id, chunk=_chunk(sequence, token, finish, known.get(row))))
            if finish is not None:
                self._forget(sequence)
        return deliveries

    def _forget(self, sequence: TokenSequence) -> None:
        self._scheduler.remove(sequence)
        self._sampler.free(sequence.id)
        if sequence.request.adapter is not None:
            self._adapters.release(sequence.request.adapter)
        del self._sequences[sequence.id]


def _chunk(
    sequence: TokenSequence, token: int, finish: FinishReason | None, logprob: TokenLogprob | None
) -> TokenChunk:
    usage = None if finish is None else sequence.usage()
    if finish is FinishReason.STOP:
        return TokenChunk(finish=finish, stop_token=token, usage=usage)
    return TokenChunk(tokens=(token,), logprobs=None if logprob is None else (logprob,), finish=finish, usage=usage)
