"""A chat's answer on its way: deltas of its choices, and the plain answer, which is their sum.

Knows text and counts; knows nothing of engines or wire shapes.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from smedje.domain.conversations import FinishReason
from smedje.services.chat_text import CallDelta, TokenText, joined


@dataclass(frozen=True, kw_only=True)
class ChatUsage:
    """Tokens of one request. completion_tokens: over all its choices. cached_tokens: prompt, not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class ChatDelta:
    """More of one choice. finish: set on the choice's last delta, which has nothing else. logprobs: of the tokens whose
    text begins in it.

    tokens: of the choice's completion, up to and with this delta: those whose text, or log probability, was told by
    then; on the last delta all of them.
    """

    index: int
    tokens: int
    text: str = ""
    calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[TokenText, ...] = ()
    finish: FinishReason | None = None


@dataclass(frozen=True, kw_only=True)
class ChatChoice:
    """One whole answer."""

    index: int
    text: str
    calls: tuple[CallDelta, ...]
    logprobs: tuple[TokenText, ...]
    finish: FinishReason


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """All choices of one request and what they cost."""

    choices: tuple[ChatChoice, ...]
    usage: ChatUsage
    fingerprint: str


@dataclass(kw_only=True)
class ChatStream:
    """A request under way. deltas: of all choices as they come, once it has begun; close it to cancel.

    counts: completion tokens by choice, up to the last delta after which another was asked for. cached: prompt tokens
    that were not computed again, by choice. fingerprint: changes when the same seed may give another answer.
    """

    deltas: AsyncGenerator[ChatDelta, None]
    prompt_tokens: int
    counts: dict[int, int]
    cached: dict[int, int]
    fingerprint: str

    @property
    def usage(self) -> ChatUsage:
        """Tokens so far; final once `deltas` has ended."""
        return ChatUsage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=sum(self.counts.values()),
            # The prompt is told once, so what was found by the choice that came first counts.
            cached_tokens=min(self.cached.values(), default=0),
        )

    async def begin(self) -> "ChatStream":
        """This stream once its first delta is made, so that whatever is wrong with the request is raised here."""
        await anext(self.deltas)
        return self

    async def collect(self) -> ChatAnswer:
        """The whole answer of a stream that has begun. Raises what the generation raises."""
        choices: dict[int, ChatChoice] = {}
        async with aclosing(self.deltas) as deltas:
            async for delta in deltas:
                known = choices.get(delta.index)
                choices[delta.index] = ChatChoice(
                    index=delta.index,
                    text=(known.text if known else "") + delta.text,
                    calls=joined(known.calls if known else (), delta.calls),
                    logprobs=(known.logprobs if known else ()) + delta.logprobs,
                    finish=delta.finish or FinishReason.STOP,
                )
        whole = tuple(choices[index] for index in sorted(choices))
        return ChatAnswer(choices=whole, usage=self.usage, fingerprint=self.fingerprint)
