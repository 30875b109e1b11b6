"""A chat request and its answer as the product understands them, apart from any wire shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class FinishReason(StrEnum):
    """Why generation ended: a stop token or string, the token limit, a call of a tool, or a content filter."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; seed makes a draw repeatable.

    logit_bias: pairs of a token id and what is added to its logit.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class AnswerFormat:
    """Answers are JSON of this schema. strict: every keyword of it holds; otherwise those that can be enforced do."""

    schema: Mapping[str, Any]
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """Functions that the model may call.

    tools: in OpenAI's form. callable: names that may be called. required: whether the answer must be a call.
    parallel: whether one answer may hold several calls.
    """

    tools: tuple[Mapping[str, Any], ...]
    callable: tuple[str, ...]
    required: bool = False
    parallel: bool = True


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One completion to make. messages are in OpenAI's message form. max_tokens None means up to the context.

    prompt: what the model continues as it stands, instead of messages; a text or token ids.
    """

    model: str
    messages: tuple[Mapping[str, Any], ...]
    sampling: Sampling
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    answer_format: AnswerFormat | None = None
    tool_use: ToolUse | None = None
    prompt: str | tuple[int, ...] | None = None
