"""Asking a classifier: its answer to a conversation is the likeliest label, whole, and logprobs are those of labels.

Knows what of a chat request has a meaning for a classifier and refuses the rest by name; knows no engines and no wire.
"""

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from smedje.domain.catalog import LABELS_FILE
from smedje.domain.conversations import ChatRequest, Sampling
from smedje.errors import NotFound, UnsupportedField
from smedje.services.chat_text import LOWEST_LOGPROB, TokenText
from smedje.services.context import Context
from smedje.serving.engine import TokenLogprob


def labels_of(ctx: Context, adapter_key: str | None) -> tuple[str, ...]:
    """The label names of the classifier under this prefix, in the order of its head's rows; empty for a chat model."""
    if adapter_key is None:
        return ()
    try:
        found = msgspec.json.decode(ctx.objects.get(f"{adapter_key}/{LABELS_FILE}"))
    except NotFound:
        return ()
    return tuple(found["labels"])


def classifying(request: ChatRequest) -> ChatRequest:
    """The request that makes an engine name one label. The likeliest label is the answer, whatever the temperature.

    Raises UnsupportedField for what would be ignored: a bare prompt, tools, an answer format, a bias on tokens.
    """
    for param, given in (
        ("prompt", request.prompt is not None),
        ("tools", request.tool_use is not None),
        ("response_format", request.answer_format is not None),
        ("logit_bias", bool(request.sampling.logit_bias)),
    ):
        if given:
            raise UnsupportedField(
                f"{request.model} is a classifier: it answers messages with one of its labels. Leave {param} out.",
                param=param,
            )
    sampling = Sampling(temperature=0.0, top_logprobs=request.sampling.top_logprobs)
    return replace(request, sampling=sampling, max_tokens=1, stop=())


class LabelText:
    """An answer that is one label; stands where AnswerText stands for a chat model."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self.stopped = False
        self.begun = 0

    def feed(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob] | None) -> tuple[str, tuple[TokenText, ...]]:
        """The label, and its log probability with those of the likeliest ones."""
        self.stopped = self.stopped or bool(tokens)
        self.begun += len(tokens)
        text = "".join(self._labels[token] for token in tokens)
        return text, tuple(self._told(found) for found in logprobs or ())

    def finish(self) -> tuple[str, tuple[TokenText, ...]]:
        """Nothing is held back."""
        return "", ()

    def _told(self, found: TokenLogprob) -> TokenText:
        return TokenText(
            text=self._labels[found.token],
            logprob=max(found.logprob, LOWEST_LOGPROB),
            # Where there are fewer labels than were asked for, the rest of the engine's row is no label.
            top=tuple(
                (self._labels[token], max(logprob, LOWEST_LOGPROB))
                for token, logprob in found.top
                if token < len(self._labels)
            ),
        )
