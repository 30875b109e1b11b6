"""`vllm serve` where vLLM cannot run: its documented HTTP surface over our own engine, in a process of its own.

    python -m tests.vllm_stand_in serve FOLDER --uds PATH ...

For tests of what talks to vLLM. It is as strict as vLLM 0.32 (unknown options and fields, values out of range, the
key) and has its habits: 16 tokens unless told otherwise, the model's end of text ends an answer unless told otherwise,
a stop token is among the ids, a refused grammar is an event of a stream that began with 200. It says nothing of vLLM's
numbers.
"""

import argparse
import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from smedje.domain.conversations import FinishReason, Sampling
from smedje.errors import SmedjeError
from smedje.modeling.load import load_decoder
from smedje.objects.store import open_objects
from smedje.serving.adapters import AdapterCache
from smedje.serving.engine import GenerationRequest, TokenChunk, TokenLogprob
from smedje.serving.grammar import Grammars
from smedje.serving.torch_engine import EngineLimits, TorchEngine

PLACES = 8


class Strict(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Strict):
    """Whether the counts come at the end."""

    include_usage: bool = False


class Grammar(Strict):
    """A grammar in llguidance's dialect of Lark."""

    grammar: str


class Completion(Strict):
    """What of POST /v1/completions is known here, with vLLM's defaults and bounds."""

    model: str
    prompt: list[int]
    max_tokens: int = Field(16, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: Literal[0, 1] = 0
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    logit_bias: dict[str, float] = {}
    logprobs: int | None = Field(None, ge=0, le=20)
    stream: Literal[True]
    stream_options: StreamOptions = StreamOptions()
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    structured_outputs: Grammar | None = None


class LoadAdapter(Strict):
    """Body of POST /v1/load_lora_adapter."""

    lora_name: str
    lora_path: str


class UnloadAdapter(Strict):
    """Body of POST /v1/unload_lora_adapter."""

    lora_name: str


class Served:
    """The engine, its adapters by name, and who waits for its chunks."""

    def __init__(self, folder: Path, *, context: int) -> None:
        torch.set_num_threads(1)
        model = load_decoder(folder)
        adapters = AdapterCache(model, open_objects(Path("/").as_uri()), folder=folder / "none", capacity=PLACES)
        grammars = Grammars(folder / "tokenizer.json", vocabulary=model.shape.vocab_size)
        limits = EngineLimits(context=context, token_capacity=PLACES * context)
        self.engine = TorchEngine(model, adapters, limits, grammars=grammars)
        self.context = context
        self.end_of_text = int(json.loads((folder / "config.json").read_bytes())["eos_token_id"])
        self.adapters: dict[str, str] = {}
        self.queues: dict[int, asyncio.Queue[TokenChunk]] = {}
        self.ids = itertools.count(1)

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """The engine steps in a thread while the server is up."""
        loop = asyncio.get_running_loop()
        stepping = asyncio.create_task(asyncio.to_thread(self._step, loop))
        yield
        self.engine.close()
        await stepping

    def _step(self, loop: asyncio.AbstractEventLoop) -> None:
        while self.engine.wait():
            for delivery in self.engine.step():
                if queue := self.queues.get(delivery.request_id):
                    loop.call_soon_threadsafe(queue.put_nowait, delivery.chunk)

    def request_of(self, body: Completion) -> GenerationRequest:
        """What vLLM would do, as our engine is asked for it."""
        return GenerationRequest(
            tokens=tuple(body.prompt),
            sampling=Sampling(
                temperature=0.0 if body.top_k == 1 else body.temperature,
                top_p=body.top_p,
                seed=body.seed,
                frequency_penalty=body.frequency_penalty,
                presence_penalty=body.presence_penalty,
                top_logprobs=body.logprobs,
                logit_bias=tuple((int(token), bias) for token, bias in body.logit_bias.items()),
            ),
            max_tokens=body.max_tokens,
            adapter=self.adapters.get(body.model),
            stop_ids=frozenset(body.stop_token_ids) | (frozenset() if body.ignore_eos else {self.end_of_text}),
            grammar=body.structured_outputs and body.structured_outputs.grammar,
        )

    async def stream(self, body: Completion) -> AsyncIterator[str]:
        """The events of one completion; whoever stops reading cancels it."""
        request_id, count, cached = next(self.ids), 0, 0
        queue = self.queues[request_id] = asyncio.Queue[TokenChunk]()
        try:
            await asyncio.to_thread(self.engine.add, request_id, self.request_of(body))
            chunk = TokenChunk()
            while chunk.finish is None:
                chunks = [await queue.get()]
                while not queue.empty():
                    chunks.append(queue.get_nowait())
                chunk = chunks[-1]
                choice = self._choice(body, chunks, first=count == 0)
                count += len(choice["token_ids"])
                yield event({"choices": [choice]})
            cached = chunk.usage.cached_tokens if chunk.usage else 0
            if body.stream_options.include_usage:
                details = {"prompt_tokens_details": {"cached_tokens": cached}}
                usage = {"prompt_tokens": len(body.prompt), "completion_tokens": count, **details}
                yield event({"choices": [], "usage": usage})
        except SmedjeError as error:
            yield event({"error": {"message": error.message, "type": "BadRequestError", "param": None, "code": 400}})
        finally:
            del self.queues[request_id]
            self.engine.cancel(request_id)
        yield "data: [DONE]\n\n"

    def _choice(self, body: Completion, chunks: list[TokenChunk], *, first: bool) -> dict[str, Any]:
        last = chunks[-1]
        tokens = [token for chunk in chunks for token in chunk.tokens]
        known = [logprob for chunk in chunks for logprob in chunk.logprobs or ()]
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": last.finish, "stop_reason": None}
        if last.finish is FinishReason.STOP and last.stop_token is not None:
            tokens.append(last.stop_token)
            known += [TokenLogprob(token=last.stop_token, logprob=-1.0)] * (body.logprobs is not None)
            ends_by_itself = last.stop_token == self.end_of_text and not body.ignore_eos
            choice["stop_reason"] = None if ends_by_itself else last.stop_token
        if body.logprobs is not None:
            choice["logprobs"] = logprobs_of(known, as_ids=body.return_tokens_as_token_ids)
        shown = {"token_ids": tokens} | ({"prompt_token_ids": body.prompt} if first else {})
        return choice | (shown if body.return_token_ids else {"token_ids": []})


def logprobs_of(known: list[TokenLogprob], *, as_ids: bool) -> dict[str, Any]:
    """vLLM's four lists; the chosen token stands first among the likeliest, one more where it is none of them."""

    def name(token: int) -> str:
        return f"token_id:{token}" if as_ids else "?"

    return {
        "text_offset": [0] * len(known),
        "tokens": [name(one.token) for one in known],
        "token_logprobs": [one.logprob for one in known],
        "top_logprobs": [{name(t): p for t, p in ((one.token, one.logprob), *one.top)} for one in known],
    }


def event(content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps({'id': 'cmpl-1', 'object': 'text_completion', 'model': 'any', **content})}\n\n"


def refusal(status: int, message: str) -> JSONResponse:
    """An error as vLLM answers it."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return JSONResponse({"error": error}, status_code=status)


def check_key(request: Request) -> None:
    """Only who knows the key may go on."""
    if request.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
        raise HTTPException(401, "Unauthorized")


def create_app(served: Served) -> FastAPI:
    """vLLM's routes, those of them that are asked here."""
    app = FastAPI(lifespan=served.running)
    guarded = [Depends(check_key)]

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return refusal(400, "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()))

    @app.get("/health")
    async def health() -> PlainTextResponse:
        return PlainTextResponse("")

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        sizes = f'block_size="16",kv_cache_size_tokens="{PLACES * served.context}"'
        count = served.engine.stats().preemptions
        lines = [f"vllm:cache_config_info{{{sizes}}} 1.0", f'vllm:num_preemptions_total{{engine="0"}} {count}.0']
        return PlainTextResponse("\n".join(lines) + "\n")

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        names = ["base", *served.adapters]
        return {"object": "list", "data": [{"id": name, "max_model_len": served.context} for name in names]}

    @app.post("/v1/completions", dependencies=guarded, response_model=None)
    async def completions(body: Completion) -> StreamingResponse | JSONResponse:
        if body.model != "base" and body.model not in served.adapters:
            return refusal(404, f"The model `{body.model}` does not exist.")
        return StreamingResponse(served.stream(body), media_type="text/event-stream")

    add_adapter_routes(app, served)
    return app


def add_adapter_routes(app: FastAPI, served: Served) -> None:
    """The two routes that vLLM has only when it is told so."""
    if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") != "True":
        return
    guarded = [Depends(check_key)]

    @app.post("/v1/load_lora_adapter", dependencies=guarded)
    async def load(body: LoadAdapter) -> JSONResponse:
        config = Path(body.lora_path, "adapter_config.json")
        if body.lora_name in served.adapters:
            return refusal(400, f"The lora adapter '{body.lora_name}' has already been loaded.")
        if not config.exists():
            return refusal(404, "No adapter found.")
        if json.loads(config.read_bytes()).get("use_dora"):
            return refusal(500, "vLLM does not yet support DoRA.")
        served.adapters[body.lora_name] = body.lora_path.removeprefix("/")
        return JSONResponse("Success")

    @app.post("/v1/unload_lora_adapter", dependencies=guarded)
    async def unload(body: UnloadAdapter) -> JSONResponse:
        if served.adapters.pop(body.lora_name, None) is None:
            return refusal(404, f"The lora adapter '{body.lora_name}' cannot be found.")
        return JSONResponse("Success")


def parse_options() -> argparse.Namespace:
    """The options that are used here and, told apart, those that are only accepted; any other is refused."""
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--uds", required=True)
    parser.add_argument("--max-model-len", type=int, default=512)
    for name in ("max-lora-rank", "max-loras", "max-cpu-loras"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("dtype", "generation-config", "structured-outputs-config.backend", "uvicorn-log-level"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--served-model-name", choices=["base"], required=True)
    for name in ("enable-lora", "enable-prompt-tokens-details", "no-enable-log-requests", "disable-uvicorn-access-log"):
        parser.add_argument(f"--{name}", action="store_true", required=True)
    return parser.parse_args()


def main() -> None:
    """Serve until SIGTERM; what has begun is finished first."""
    options = parse_options()
    app = create_app(Served(options.folder, context=options.max_model_len))
    uvicorn.run(app, uds=options.uds, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
