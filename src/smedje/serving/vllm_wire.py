"""A generation request as vLLM's /v1/completions takes it, and its events as token chunks. No connections here.

Token ids go in and come back as they are: no text is read. What is asked for is written out, so that no default of the
server or of the model's generation_config.json takes part.
Source: vllm/entrypoints/openai/completion/protocol.py of vLLM 0.32, https://docs.vllm.ai/en/stable/serving/.
"""

from typing import NamedTuple

import msgspec

from smedje.domain.conversations import FinishReason
from smedje.errors import InternalError, InvalidRequest, SmedjeError, Unavailable
from smedje.serving.engine import GRAMMAR_REFUSED, GenerationRequest, TokenChunk, TokenCounts, TokenLogprob

BASE = "base"
ENGINE_GONE = "engine_gone"
# vLLM takes seeds of 63 bits.
SEED_RANGE = 2**63
TOKEN_PREFIX = "token_id:"


class Logprobs(msgspec.Struct, frozen=True):
    """Of the tokens of one choice, one entry each; tokens are spelled `token_id:7`."""

    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...]


class Choice(msgspec.Struct, frozen=True):
    """The next tokens of a completion, its end with the last ones."""

    token_ids: tuple[int, ...] | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class PromptDetails(msgspec.Struct, frozen=True):
    """cached_tokens: prompt tokens that were not computed again."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """What vLLM counted; of it only the cached tokens are taken."""

    prompt_tokens_details: PromptDetails | None = None


class Failure(msgspec.Struct, frozen=True):
    """Why vLLM does not answer; code is an HTTP status."""

    message: str = ""
    code: int | str | None = None


class Event(msgspec.Struct, frozen=True):
    """One event of a stream, and what stands in an answer with an error status."""

    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    error: Failure | None = None


_events = msgspec.json.Decoder(Event)


def body_of_request(request: GenerationRequest, *, context: int, model: str) -> dict[str, object]:
    """The body of POST /v1/completions. context: longest sequence in tokens. model: the adapter's name, or BASE.

    The model's own end of text ends a completion only under a grammar, which allows nothing else at its end; otherwise
    the request's stop tokens alone do.
    """
    sampling, room = request.sampling, context - len(request.tokens)
    body: dict[str, object] = {
        "model": model,
        "prompt": request.tokens,
        "max_tokens": room if request.max_tokens is None else min(room, request.max_tokens),
        "temperature": sampling.temperature,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "stop_token_ids": sorted(request.stop_ids),
        "ignore_eos": request.grammar is None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    # A nucleus of nothing holds the likeliest token; vLLM takes no top_p of 0.
    body |= {"top_p": sampling.top_p} if sampling.top_p > 0 else {"top_p": 1.0, "top_k": 1}
    if sampling.seed is not None:
        body["seed"] = sampling.seed % SEED_RANGE
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.top_logprobs is not None:
        body |= {"logprobs": sampling.top_logprobs, "return_tokens_as_token_ids": True}
    if request.grammar is not None:
        body["structured_outputs"] = {"grammar": request.grammar}
    return body


def error_of_failure(failure: Failure, request: GenerationRequest) -> SmedjeError:
    """The error that a client sees for what vLLM said: its 4xx are about the request, all else may be asked again."""
    status = failure.code if isinstance(failure.code, int) else 500
    if status == 404:
        return InternalError("vLLM does not know a model that it was given.")
    if not 400 <= status < 500:
        return Unavailable("The engine of this model failed on this request. Try again.", code=ENGINE_GONE)
    if request.grammar is not None:
        return InvalidRequest(f"The schema cannot be enforced: {failure.message[:400]}", code=GRAMMAR_REFUSED)
    return InvalidRequest(f"The engine refused the request: {failure.message[:400]}", code="invalid_value")


def read_event(text: str | bytes) -> Event:
    """One event's JSON. Raises InternalError for what no vLLM that is known here says."""
    try:
        return _events.decode(text)
    except msgspec.MsgspecError as wrong:
        raise InternalError(f"vLLM sent an event that cannot be read: {wrong}.") from wrong


class _End(NamedTuple):
    """What the last chunk will hold besides the counts."""

    finish: FinishReason
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    stop_token: int | None = None


class Answer:
    """One completion on its way in: events to chunks of one token. The last chunk waits for the counts."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._count = 0
        self._end: _End | None = None

    def take(self, event: Event) -> list[TokenChunk]:
        """Chunks of an event. Raises what vLLM said went wrong."""
        if event.error is not None:
            raise error_of_failure(event.error, self._request)
        chunks = [chunk for choice in event.choices for chunk in self._chunks(choice)]
        if event.usage is not None and self._end is not None:
            details = event.usage.prompt_tokens_details
            chunks.append(self._last(self._end, (details and details.cached_tokens) or 0))
        return chunks

    def _chunks(self, choice: Choice) -> list[TokenChunk]:
        tokens = choice.token_ids or ()
        if choice.finish_reason not in (None, "stop", "length"):
            raise Unavailable("The engine gave this completion up. Try again.", code=ENGINE_GONE)
        logprobs = self._logprobs(tokens, choice.logprobs)
        self._count += len(tokens)
        plain = len(tokens) if choice.finish_reason is None else max(0, len(tokens) - 1)
        if choice.finish_reason == "stop":
            self._end = _End(FinishReason.STOP, stop_token=_stop_token(choice))
        elif choice.finish_reason == "length":
            self._end = _End(FinishReason.LENGTH, tokens[plain:], None if logprobs is None else logprobs[plain:])
        return [
            TokenChunk(tokens=(tokens[place],), logprobs=None if logprobs is None else (logprobs[place],))
            for place in range(plain)
        ]

    def _logprobs(self, tokens: tuple[int, ...], found: Logprobs | None) -> tuple[TokenLogprob, ...] | None:
        wanted = self._request.sampling.top_logprobs
        if wanted is None:
            return None
        if found is None or not len(tokens) == len(found.token_logprobs) == len(found.top_logprobs):
            raise InternalError("vLLM sent tokens without their log probabilities.")
        return tuple(
            TokenLogprob(token=token, logprob=logprob, top=_likeliest(top, wanted))
            for token, logprob, top in zip(tokens, found.token_logprobs, found.top_logprobs, strict=True)
        )

    def _last(self, end: _End, cached: int) -> TokenChunk:
        counts = TokenCounts(
            prompt_tokens=len(self._request.tokens), completion_tokens=self._count, cached_tokens=cached
        )
        return TokenChunk(
            tokens=end.tokens, logprobs=end.logprobs, finish=end.finish, stop_token=end.stop_token, usage=counts
        )


def _stop_token(choice: Choice) -> int:
    """The token that ended the text: the last of its choice. vLLM names it only when it is not the model's own end."""
    if not choice.token_ids or choice.stop_reason not in (None, choice.token_ids[-1]):
        raise InternalError("vLLM ended a completion without a stop token.")
    return choice.token_ids[-1]


def _likeliest(top: dict[str, float], count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens, the likeliest first. vLLM lists the chosen one too, be it among them or not."""
    listed = sorted(top.items(), key=lambda entry: -entry[1])[:count]
    return tuple((int(token.removeprefix(TOKEN_PREFIX)), logprob) for token, logprob in listed)
