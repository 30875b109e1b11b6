"""What an engine is: requests in, token chunks out, a step at a time. Knows token ids: no text, tensors or sockets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from smedje.domain.conversations import FinishReason, Sampling
from smedje.errors import InvalidRequest, SmedjeError

GRAMMAR_REFUSED = "grammar_refused"


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One completion to make.

    tokens: the rendered prompt. adapter: object-storage prefix of a LoRA adapter, None for the base model.
    max_tokens: completion tokens at most, None for what the context leaves. stop_ids: tokens that end the text.
    project: whose request it is; projects take turns. grammar: what the text must be, in llguidance's dialect of Lark.
    """

    tokens: tuple[int, ...]
    sampling: Sampling
    max_tokens: int | None = None
    adapter: str | None = None
    stop_ids: frozenset[int] = frozenset()
    project: str = ""
    grammar: str | None = None


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """Natural-log probability of a chosen token and of the likeliest ones, as the model gave them: before temperature,
    top_p, penalties and grammar."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Tokens to bill. completion_tokens counts the stop token, though it is no part of the text.

    cached_tokens: prompt tokens that were not computed again. How a completion came about, so equal counts may differ.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class TokenChunk:
    """The next tokens of one completion; the last chunk of a completion carries finish and usage.

    stop_token: the token that ended the text when finish is `stop`; it is not among tokens and has no logprob.
    logprobs: one per token when the request asked for them. error: why the completion cannot go on, on a last chunk
    without finish.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish: FinishReason | None = None
    stop_token: int | None = None
    usage: TokenCounts | None = None
    error: SmedjeError | None = None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A chunk and the request it answers."""

    request_id: int
    chunk: TokenChunk


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """A moment of an engine. cached_tokens and token_capacity count key/value places, in tokens.

    cached_tokens: of running requests. resting_tokens: of ended ones, kept for prompts with the same beginning.
    reused_tokens: prompt tokens that were not computed again, since the start. preemptions: times that a running
    request lost its places to an older one, since the start. numbers: what the base model's weights are served in.
    merged_steps: steps that weights with the adapter of all their rows in them computed, since the start.
    """

    running: int
    waiting: int
    cached_tokens: int
    token_capacity: int
    adapters: int
    generated_tokens: int
    resting_tokens: int = 0
    reused_tokens: int = 0
    preemptions: int = 0
    numbers: str = "fp32"
    merged_steps: int = 0


class Engine(Protocol):
    """Continuous batching behind five verbs. add, cancel, stats and close may be called from any thread; wait and step
    from one thread only, which drives the engine: `while engine.wait(): deliver(engine.step())`."""

    def add(self, request_id: int, request: GenerationRequest) -> None:
        """Queue a request under an id that is not in use. Loads the adapter if need be.

        Raises InvalidRequest for a request that can never run or a grammar that cannot be enforced, NotFound for an
        unknown adapter.
        """

    def cancel(self, request_id: int) -> None:
        """Forget a request before the next step; an id that is unknown or finished is no error."""

    def wait(self) -> bool:
        """Block until there is something to do. False once the engine is closed."""

    def step(self) -> Sequence[Delivery]:
        """Advance every running completion by at most one token; empty when nothing came of it."""

    def stats(self) -> EngineStats:
        """Counts of this moment."""

    def close(self) -> None:
        """Drop all requests and let wait return False."""


def check_request(request: GenerationRequest, *, context: int, vocabulary: int) -> None:
    """Raise InvalidRequest unless the request can run on a model with this context (tokens) and vocabulary size."""
    if not request.tokens:
        raise InvalidRequest("The prompt has no tokens. Send at least one message.", code="empty_prompt")
    if min(request.tokens) < 0 or max(request.tokens) >= vocabulary:
        wrong = next(token for token in request.tokens if not 0 <= token < vocabulary)
        raise InvalidRequest(
            f"Token id {wrong} is outside this model's vocabulary of {vocabulary}.",
            code="invalid_token",
            param="tokens",
        )
    if request.max_tokens is not None and request.max_tokens < 1:
        raise InvalidRequest(
            f"max_tokens must be at least 1, found {request.max_tokens}.", code="invalid_value", param="max_tokens"
        )
    asked = len(request.tokens) + (request.max_tokens or 1)
    if asked > context:
        raise InvalidRequest(
            f"This model's maximum context length is {context} tokens, but {asked} were requested "
            f"({len(request.tokens)} in the messages, {request.max_tokens or 1} in the completion). "
            "Shorten the messages or lower max_tokens.",
            code="context_length_exceeded",
            param="messages",
        )
    _check_sampling(request.sampling, vocabulary)


def _check_sampling(sampling: Sampling, vocabulary: int) -> None:
    for token, _ in sampling.logit_bias:
        if not 0 <= token < vocabulary:
            raise InvalidRequest(
                f"logit_bias names token id {token}, outside this model's vocabulary of {vocabulary}.",
                code="invalid_token",
                param="logit_bias",
            )
    if not 0.0 <= sampling.temperature <= 1e4:
        raise InvalidRequest(
            f"temperature must be at least 0, found {sampling.temperature}.", code="invalid_value", param="temperature"
        )
    if not 0.0 <= sampling.top_p <= 1.0:
        raise InvalidRequest(
            f"top_p must lie between 0 and 1, found {sampling.top_p}.", code="invalid_value", param="top_p"
        )
