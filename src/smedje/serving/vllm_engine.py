"""A vLLM server as one of our engines: requests become streams over its unix socket, their events become chunks.

Knows requests under way and the threads that they cross; the shapes are vllm_wire's, adapters vllm_adapters', the
server's process vllm_process'. vLLM batches, caches and preempts by itself.
"""

import asyncio
import json
import re
import sys
import threading
import traceback
from collections import deque
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from smedje.errors import InternalError, SmedjeError, Unavailable
from smedje.objects.store import Objects
from smedje.serving.engine import Delivery, EngineStats, GenerationRequest, TokenChunk, check_request
from smedje.serving.vllm_adapters import NEUTRAL, VllmAdapters
from smedje.serving.vllm_wire import BASE, ENGINE_GONE, Answer, body_of_request, error_of_failure, read_event

METRICS_SECONDS = 5.0
CLOSE_SECONDS = 10.0
CONNECT_SECONDS = 10.0
EVENT_PREFIX = "data: "
END_OF_EVENTS = "[DONE]"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class VllmServer:
    """Where a vLLM server answers and what it serves. key: its API key. vocabulary: the model's number of tokens.

    adapters: how many it may know at once. cache: folder for adapters fetched from a bucket. neutral: folder of an
    adapter that changes nothing, for requests without one; None where the server computes those by themselves.
    """

    socket: Path
    key: str
    vocabulary: int
    adapters: int
    cache: Path
    neutral: Path | None = None

    def client(self) -> httpx2.AsyncClient:
        """A client for one event loop. A token may take any time, so only connecting is limited."""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=32)
        return httpx2.AsyncClient(
            base_url="http://vllm",
            headers={"Authorization": f"Bearer {self.key}"},
            transport=httpx2.AsyncHTTPTransport(uds=str(self.socket), limits=limits),
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,
        )


class _Flight:
    """One request under way. adapter: what it holds of the server. chunks: what has arrived, not yet delivered."""

    def __init__(self, request: GenerationRequest, adapter: str | None) -> None:
        self.request = request
        self.adapter = adapter
        self.chunks: deque[TokenChunk] = deque()
        self.tokens = 0
        self.stream: asyncio.Task[None] | None = None


class VllmEngine:
    """An Engine. Streams live on an event loop in a thread of its own; the other verbs leave and read notes."""

    def __init__(self, server: VllmServer, objects: Objects) -> None:
        """Ask the server, which must be up, what it serves. Raises Unavailable when it does not answer."""
        self._server = server
        self._notes = threading.Condition()
        self._flights: dict[int, _Flight] = {}
        self._ready: dict[int, None] = {}
        self._cancelled: set[int] = set()
        self._closed = False
        self._broken: Exception | None = None
        self._generated = 0
        self._reused = 0
        self._preemptions = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="vllm-streams", daemon=True)
        self._thread.start()
        try:
            self._context, self._capacity = self._run(self._open(objects))
        except httpx2.HTTPError as gone:
            self.close()
            raise Unavailable(f"vLLM does not answer: {gone}.", code=ENGINE_GONE) from gone

    def add(self, request_id: int, request: GenerationRequest) -> None:
        """See Engine.add. A grammar that cannot be enforced is refused by the first chunk."""
        check_request(request, context=self._context, vocabulary=self._server.vocabulary)
        if self._closed:
            raise _stopping()
        adapter = request.adapter or (NEUTRAL if self._server.neutral else None)
        if adapter is not None:
            try:
                self._run(self._adapters.acquire(adapter))
            except httpx2.HTTPError as gone:
                raise _gone() from gone
            except CancelledError:
                raise _stopping() from None
        flight = _Flight(request, adapter)
        with self._notes:
            if not self._closed:
                self._flights[request_id] = flight
                self._loop.call_soon_threadsafe(self._begin, request_id, flight)
                return
        raise _stopping()

    def cancel(self, request_id: int) -> None:
        """See Engine.cancel."""
        with self._notes:
            self._cancelled.add(request_id)
            self._notes.notify()

    def wait(self) -> bool:
        """See Engine.wait. Raises what `fail` was given."""
        with self._notes:
            self._notes.wait_for(lambda: self._closed or self._broken or self._ready or self._cancelled)
            if self._broken is not None and not self._closed:
                raise self._broken
            return not self._closed

    def step(self) -> Sequence[Delivery]:
        """See Engine.step: at most one token of each completion, of those that have arrived."""
        deliveries = []
        with self._notes:
            for request_id in self._cancelled:
                self._forget(request_id)
            self._cancelled = set()
            for request_id in tuple(self._ready):
                flight = self._flights[request_id]
                chunk = flight.chunks.popleft()
                if not flight.chunks:
                    del self._ready[request_id]
                flight.tokens += len(chunk.tokens)
                self._generated += len(chunk.tokens) + (chunk.stop_token is not None)
                if chunk.usage is not None or chunk.error is not None:
                    self._reused += chunk.usage.cached_tokens if chunk.usage else 0
                    self._forget(request_id)
                deliveries.append(Delivery(request_id=request_id, chunk=chunk))
        return deliveries

    def stats(self) -> EngineStats:
        """See Engine.stats: of the requests that went through here. vLLM's resting places are not known."""
        with self._notes:
            running = [flight for flight in self._flights.values() if flight.tokens]
            return EngineStats(
                running=len(running),
                waiting=len(self._flights) - len(running),
                cached_tokens=sum(len(flight.request.tokens) + flight.tokens for flight in running),
                token_capacity=self._capacity,
                adapters=len(self._adapters),
                generated_tokens=self._generated,
                reused_tokens=self._reused,
                preemptions=self._preemptions,
            )

    def fail(self, reason: Exception) -> None:
        """The server is gone: let `wait` raise the reason, since nothing can be served any more."""
        with self._notes:
            self._broken = reason
            self._notes.notify()

    def close(self) -> None:
        """See Engine.close. Streams are broken off and the thread ends; closing twice is no error."""
        with self._notes:
            closed_before, self._closed = self._closed, True
            self._notes.notify()
        if not closed_before:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_SECONDS)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _forget(self, request_id: int) -> None:
        """Under the lock: end a request here and in the server. One that is not there is no error."""
        flight = self._flights.pop(request_id, None)
        self._ready.pop(request_id, None)
        if flight is not None and not self._closed:
            self._loop.call_soon_threadsafe(self._end, flight)

    async def _open(self, objects: Objects) -> tuple[int, int]:
        """The server's longest sequence and its places for keys and values, both in tokens."""
        self._http = self._server.client()
        self._adapters = VllmAdapters(
            self._http,
            objects,
            folder=self._server.cache,
            capacity=self._server.adapters,
            neutral=self._server.neutral,
        )
        listed = (await self._http.get("/v1/models")).raise_for_status().json()
        context = int(listed["data"][0]["max_model_len"])
        metrics = (await self._http.get("/metrics")).raise_for_status().text
        self._watch = asyncio.create_task(self._watch_preemptions())
        return context, token_capacity(metrics)

    def _begin(self, request_id: int, flight: _Flight) -> None:
        flight.stream = self._loop.create_task(self._stream(request_id, flight))

    def _end(self, flight: _Flight) -> None:
        if flight.stream is not None:
            flight.stream.cancel()
        if flight.adapter is not None:
            self._adapters.release(flight.adapter)

    async def _stream(self, request_id: int, flight: _Flight) -> None:
        try:
            await self._receive(request_id, flight)
        except httpx2.HTTPError:
            self._arrive(request_id, flight, [TokenChunk(error=_gone())])
        except SmedjeError as error:
            self._arrive(request_id, flight, [TokenChunk(error=error)])
        except Exception as error:
            # A fault of ours: this request's client must hear of it, and the others go on.
            traceback.print_exception(error, file=sys.stderr)
            failed = InternalError("The engine failed on this request. See its log.")
            self._arrive(request_id, flight, [TokenChunk(error=failed)])

    async def _receive(self, request_id: int, flight: _Flight) -> None:
        answer = Answer(flight.request)
        body = body_of_request(flight.request, context=self._context, model=flight.adapter or BASE)
        headers = {"Content-Type": "application/json"}
        async with self._http.stream(
            "POST", "/v1/completions", content=json.dumps(body).encode(), headers=headers
        ) as response:
            if response.status_code != 200:
                refused = read_event(await response.aread()).error
                if refused is None:
                    raise InternalError("The engine failed on this request. See its log.")
                raise error_of_failure(refused, flight.request)
            async for line in response.aiter_lines():
                text = line.removeprefix(EVENT_PREFIX)
                if text == END_OF_EVENTS:
                    break
                if line.startswith(EVENT_PREFIX) and self._arrive(request_id, flight, answer.take(read_event(text))):
                    return
        raise _gone()

    def _arrive(self, request_id: int, flight: _Flight, chunks: Sequence[TokenChunk]) -> bool:
        """Leave chunks for the next step; whether the last one was among them."""
        if not chunks:
            return False
        with self._notes:
            if self._flights.get(request_id) is flight:
                flight.chunks.extend(chunks)
                self._ready[request_id] = None
                self._notes.notify()
        return chunks[-1].usage is not None or chunks[-1].error is not None

    async def _watch_preemptions(self) -> None:
        while True:
            await asyncio.sleep(METRICS_SECONDS)
            with suppress(httpx2.HTTPError):
                self._preemptions = preemptions((await self._http.get("/metrics")).text)

    def _live(self) -> None:
        """The thread: the event loop until it is stopped, then the end of all that goes on in it."""
        self._loop.run_forever()
        self._loop.run_until_complete(self._hang_up())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _hang_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()


def token_capacity(metrics: str) -> int:
    """Places for keys and values, in tokens, from the text of /metrics; 0 where it does not say."""
    found = re.search(r'^vllm:cache_config_info\{.*kv_cache_size_tokens="(\d+)"', metrics, re.MULTILINE)
    return int(found[1]) if found else 0


def preemptions(metrics: str) -> int:
    """How often running requests lost their places, from the text of /metrics."""
    return int(
        sum(float(count) for count in re.findall(r"^vllm:num_preemptions_total\S* (\S+)", metrics, re.MULTILINE))
    )


def _stopping() -> Unavailable:
    return Unavailable("The engine is stopping. Try again.", code="stopping")


def _gone() -> Unavailable:
    return Unavailable("The engine of this model went away. Try again.", code=ENGINE_GONE)
