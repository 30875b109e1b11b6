"""Chat completions: resolve the model, render the prompt, generate, make text of it, count. Async, for the API process.

Knows tokens and text; knows nothing of wire shapes.
"""

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import anyio.to_thread

from smedje import __version__
from smedje.chat.grammar import answer_grammar
from smedje.chat.template import render_prompt
from smedje.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from smedje.domain.conversations import ChatRequest, FinishReason
from smedje.domain.ids import USAGE, new_id
from smedje.domain.projects import Principal
from smedje.domain.usage import UsageRecord
from smedje.errors import InvalidRequest, NotFound, SmedjeError
from smedje.modeling.folder import MANIFEST, installed_folder
from smedje.services.admission import Admission, Admitted, ChatWork
from smedje.services.catalog import ResolvedModel, resolve
from smedje.services.chat_stream import ChatDelta, ChatStream
from smedje.services.chat_text import AnswerCalls, AnswerText
from smedje.services.classifiers import LabelText, classifying, labels_of
from smedje.services.context import Context
from smedje.services.meters import Meters
from smedje.services.whole_models import engine_name, tuned_in_full
from smedje.serving.engine import GRAMMAR_REFUSED, EngineStats, GenerationRequest
from smedje.serving.supervisor import EnginePool

KEPT_TOKENIZERS = 8
# Deltas that may wait for a slow reader; then the engine's connection fills and generation pauses.
QUEUED_DELTAS = 64

log = logging.getLogger("smedje.chat")


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A request with everything that generation needs. labels: of a classifier, else empty.

    whole: all weights were tuned. counts, cached: shared with the stream that is handed out.
    """

    request: ChatRequest
    resolved: ResolvedModel
    folder: Path
    tokenizer: ChatTokenizer
    labels: tuple[str, ...]
    whole: bool
    tokens: tuple[int, ...]
    grammar: str | None
    project: str
    admitted: Admitted
    counts: dict[int, int] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)


class Chat:
    """Answers chat requests through an engine pool. Methods that are async belong to the pool's event loop."""

    def __init__(self, ctx: Context, pool: EnginePool) -> None:
        self._ctx = ctx
        self._pool = pool
        self.meters = Meters()
        self._admission = Admission(ctx)
        self._tokenizers: dict[tuple[Path, int, date], ChatTokenizer] = {}
        self._lock = threading.Lock()
        self._warming: set[asyncio.Task[None]] = set()

    async def open(self, caller: Principal, request: ChatRequest) -> ChatStream:
        """A request that has begun. Raises what `prepare` and the beginning raise."""
        return await (await self.prepare(caller, request)).begin()

    async def prepare(self, caller: Principal, request: ChatRequest) -> ChatStream:
        """A request that was let in; its `begin` is next, whatever happens, or what was taken for it is not given back.

        Raises NotFound for an unknown model, InvalidRequest for messages that the model cannot take. `begin` raises
        InvalidRequest for what the engine cannot take, Unavailable when the engine does not start.
        """
        prepared = await anyio.to_thread.run_sync(self._prepare, caller, request)
        return ChatStream(
            deltas=self._counted(caller, prepared),
            prompt_tokens=len(prepared.tokens),
            counts=prepared.counts,
            cached=prepared.cached,
            fingerprint=_fingerprint(prepared.folder, prepared.resolved.adapter_key),
        )

    def warm_soon(self, base_model: str) -> None:
        """Start the engine of an installed base model in the background, so that the first request need not wait."""
        warming = asyncio.get_running_loop().create_task(self._warm(base_model))
        self._warming.add(warming)
        warming.add_done_callback(self._warming.discard)

    async def engines(self) -> dict[str, EngineStats]:
        """How busy each running engine is, by base model."""
        return await self._pool.measured()

    async def close(self) -> None:
        """Give up what runs in the background; the pool is closed by its owner."""
        for warming in tuple(self._warming):
            warming.cancel()
        await asyncio.gather(*self._warming, return_exceptions=True)

    async def _warm(self, base_model: str) -> None:
        try:
            await self._pool.warm(base_model, installed_folder(self._ctx.home, base_model))
        except SmedjeError as problem:
            # The first request will meet the same problem and tell its caller.
            log.warning("engine did not start", extra={"base_model": base_model, "code": problem.code})

    def _prepare(self, caller: Principal, request: ChatRequest) -> _Prepared:
        if caller.deployment not in (None, request.model):
            raise NotFound(
                f"This key asks the deployment {caller.deployment} alone; {request.model[:100]!r} is nothing to it.",
                code="model_not_found",
                param="model",
            )
        resolved = resolve(self._ctx, caller.project.id, request.model)
        labels = labels_of(self._ctx, resolved.adapter_key)
        request = classifying(request) if labels else request
        folder = installed_folder(self._ctx.home, resolved.base_model)
        tokenizer = self.tokenizer(folder)
        tokens = _prompt(tokenizer, request)
        work = ChatWork(
            project_id=caller.project.id,
            deployment=resolved.deployment,
            base_model=resolved.base_model,
            prompt_tokens=len(tokens),
            completion_tokens=None if request.max_tokens is None else request.max_tokens * request.n,
            choices=request.n,
        )
        return _Prepared(
            request=request,
            resolved=resolved,
            folder=folder,
            tokenizer=tokenizer,
            labels=labels,
            whole=tuned_in_full(self._ctx, resolved.adapter_key),
            tokens=tokens,
            grammar=answer_grammar(request.answer_format, request.tool_use, tokenizer.call_form),
            project=caller.project.id,
            admitted=self._admission.admit(work),
        )

    def tokenizer(self, folder: Path) -> ChatTokenizer:
        """The tokenizer of an installed base model, kept between requests."""
        # A model may be pulled again, and templates may print the day: both make another tokenizer.
        key = (folder, (folder / MANIFEST).stat().st_mtime_ns, date.today())
        with self._lock:
            if key not in self._tokenizers:
                if len(self._tokenizers) >= KEPT_TOKENIZERS:
                    self._tokenizers.pop(next(iter(self._tokenizers)))
                self._tokenizers[key] = load_chat_tokenizer(folder)
            return self._tokenizers[key]

    async def _counted(self, caller: Principal, prepared: _Prepared) -> AsyncGenerator[ChatDelta, None]:
        """The deltas of all choices, the first one twice: once for `begin`, which only looks, once to be sent.

        A delta is counted when the next is asked for: then it was sent. One that the caller closes at is not.
        """
        begun, looked = self._ctx.now(), False
        try:
            async with aclosing(self._merged(prepared)) as deltas:
                async for delta in deltas:
                    if not looked:
                        looked = True
                        yield delta
                    # Deltas that wait come without a pause: let the loop see first whether the client has gone.
                    await asyncio.sleep(0)
                    yield delta
                    prepared.counts[delta.index] = delta.tokens
        except InvalidRequest as wrong:
            if wrong.code != GRAMMAR_REFUSED:
                raise
            param = "tools" if prepared.request.answer_format is None else "response_format"
            raise InvalidRequest(wrong.message, code=wrong.code, param=param) from wrong
        finally:
            record = UsageRecord(
                id=new_id(USAGE),
                project_id=caller.project.id,
                key_id=caller.key_id,
                kind="inference",
                model=prepared.resolved.deployment or prepared.resolved.model,
                prompt_tokens=len(prepared.tokens),
                completion_tokens=sum(prepared.counts.values()),
                seconds=self._ctx.now() - begun,
                created_at=self._ctx.seconds(),
            )
            if prepared.counts:
                self.meters.request_counted(
                    prepared.resolved.base_model,
                    prompt=len(prepared.tokens),
                    cached=min(prepared.cached.values(), default=0),
                    completion=sum(prepared.counts.values()),
                )
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._record, record if prepared.counts else None, prepared.admitted)

    def _record(self, record: UsageRecord | None, admitted: Admitted) -> None:
        if record is None and admitted == Admitted():
            return
        with self._ctx.database.transaction() as tx:
            self._admission.settle(tx, admitted, record)

    async def _merged(self, prepared: _Prepared) -> AsyncGenerator[ChatDelta, None]:
        """The deltas of all choices, generated side by side, in the order in which they come."""
        queue = asyncio.Queue[ChatDelta | Exception | None](QUEUED_DELTAS)
        running = prepared.request.n
        tasks = [asyncio.create_task(self._feed(queue, prepared, index)) for index in range(running)]
        try:
            while running:
                found = await queue.get()
                if isinstance(found, Exception):
                    raise found
                if found is None:
                    running -= 1
                else:
                    yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _feed(
        self, queue: "asyncio.Queue[ChatDelta | Exception | None]", prepared: _Prepared, index: int
    ) -> None:
        try:
            async with aclosing(self._choice(prepared, index)) as deltas:
                async for delta in deltas:
                    await queue.put(delta)
        except Exception as problem:
            await queue.put(problem)
        else:
            await queue.put(None)

    async def _choice(self, prepared: _Prepared, index: int) -> AsyncGenerator[ChatDelta, None]:
        """One choice; its last delta carries the finish reason."""
        request = prepared.request
        seed = request.sampling.seed
        labels = prepared.labels
        text = LabelText(labels) if labels else AnswerText(prepared.tokenizer, stop=request.stop)
        may_call = request.tool_use is not None and request.tool_use.callable
        calls = AnswerCalls(prepared.tokenizer.call_form if may_call else None)
        generation = GenerationRequest(
            tokens=prepared.tokens,
            # The choices of one seeded request must differ from each other and be the same again tomorrow.
            sampling=request.sampling if seed is None else replace(request.sampling, seed=_shifted(seed, index)),
            max_tokens=request.max_tokens,
            adapter=None if prepared.whole else prepared.resolved.adapter_key,
            # A classifier's answer is the number of a label, which may be that of any token.
            stop_ids=frozenset() if labels else frozenset(prepared.tokenizer.stop_ids),
            project=prepared.project,
            grammar=prepared.grammar,
        )
        base, key = prepared.resolved.base_model, prepared.resolved.adapter_key
        if prepared.whole and key is not None:
            chunks = self._pool.generate(engine_name(base, key), prepared.folder, generation, weights=key)
        else:
            chunks = self._pool.generate(base, prepared.folder, generation)
        assert isinstance(chunks, AsyncGenerator), "the pool hands out something that can be closed"
        last, first, count, told = time.perf_counter(), True, 0, 0
        async with aclosing(chunks):
            async for chunk in chunks:
                now = time.perf_counter()
                if first:
                    self.meters.first_token(base, now - last)
                else:
                    self.meters.more_tokens(base, len(chunk.tokens), now - last)
                last, first = now, False
                count += len(chunk.tokens)
                piece, logprobs = text.feed(chunk.tokens, chunk.logprobs)
                finish = chunk.finish
                if finish is not None and chunk.usage is not None:
                    count = chunk.usage.completion_tokens
                    prepared.cached[index] = chunk.usage.cached_tokens
                if finish is not None and not text.stopped:
                    rest, more = text.finish()
                    piece, logprobs = piece + rest, logprobs + more
                if text.stopped:
                    finish = FinishReason.STOP
                piece, called = calls.feed(piece, last=finish is not None)
                if finish is FinishReason.STOP and calls.any:
                    finish = FinishReason.TOOL_CALLS
                if logprobs or not calls.holding:
                    told = text.begun
                if piece or called or logprobs:
                    yield ChatDelta(index=index, tokens=told, text=piece, calls=called, logprobs=logprobs)
                if finish is not None:
                    yield ChatDelta(index=index, tokens=count, finish=finish)
                    return


def _prompt(tokenizer: ChatTokenizer, request: ChatRequest) -> tuple[int, ...]:
    if request.prompt is None:
        tools = None if request.tool_use is None else request.tool_use.tools
        return tuple(render_prompt(tokenizer, request.messages, tools=tools))
    if isinstance(request.prompt, str):
        # The caller writes the whole prompt, control tokens included; only what every text begins with is added.
        return tuple(tokenizer.tokenizer.encode(request.prompt).ids)
    return request.prompt


def _fingerprint(folder: Path, adapter_key: str | None) -> str:
    """Tells base model, adapter and this program apart."""
    facts = (folder / MANIFEST).read_bytes() + f"{adapter_key} {__version__}".encode()
    return f"fp_{hashlib.sha256(facts).hexdigest()[:12]}"


def _shifted(seed: int, index: int) -> int:
    """seed + index, within 64 bits signed."""
    return (seed + index + 2**63) % 2**64 - 2**63
