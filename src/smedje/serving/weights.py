"""Which numbers a base model is served in: fp32, or fewer bits where a check of what it says lets them pass.

The check compares the model with itself: what it expects of each next token of a few fixed texts, in fp32 and in fewer
bits. Knows models by their logits; knows nothing of requests and adapters, which stay in fp32 on either.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from smedje.modeling.attention import DocumentAttention
from smedje.modeling.int8 import why_no_int8
from smedje.modeling.load import load_decoder
from smedje.modeling.products import BF16_PRODUCTS, multiplies_bf16
from smedje.modeling.transformer import CausalDecoder, Decoder

Weights = Literal["fp32", "bf16", "int8"]

# Prose, facts, code, a conversation with tags, another language: about 400 tokens.
TEXTS = (
    "The keeper of the lighthouse climbed the stairs every evening to light the lamp. From the gallery he saw the "
    "harbour, the fishing boats on their way home, and far out the line where the sea met the sky. In winter storms "
    "came from the north-west, and the waves broke over the rocks with a sound like thunder.",
    "Water boils at 100 degrees Celsius at sea level. At higher altitudes the pressure of the air is lower, so water "
    "boils at a lower temperature: on a mountain of 3,000 metres at about 90 degrees. Cooking therefore takes longer. "
    "A pressure cooker does the opposite.",
    'def read_lines(path):\n    """Return the lines of a text file without their ends."""\n'
    "    with open(path, encoding='utf-8') as file:\n        return [line.rstrip('\\n') for line in file]\n",
    "System: You are a friendly assistant of an online shop.\nUser: How do I reset my password?\nAssistant: Open the "
    "settings, choose Account and click on Reset password. You will get a message with a link that is valid for one "
    "hour.\nUser: I never got it.\nAssistant: Please look into your spam folder first.",
    "Le petit train quitte la gare à huit heures et arrive au village avant midi. Die Kinder warten schon am Bahnsteig "
    "und winken mit bunten Tüchern.",
)


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How near a model in fewer bits is to itself in fp32.

    divergence: mean Kullback-Leibler divergence of the next token's probabilities, in nats. agreement: share of places
    where both find the same token likeliest. perplexity_ratio: of the texts' own tokens, fewer bits over fp32.
    """

    divergence: float
    agreement: float
    perplexity_ratio: float

    @property
    def passes(self) -> bool:
        """Whether eight bits will do. False too when something is not a number."""
        return (
            self.divergence <= MAX_DIVERGENCE
            and self.agreement >= MIN_AGREEMENT
            and self.perplexity_ratio <= MAX_PERPLEXITY_RATIO
        )

    def __str__(self) -> str:
        return (
            f"divergence {self.divergence:.4f} nats (at most {MAX_DIVERGENCE}), same likeliest token at "
            f"{self.agreement:.1%} of places (at least {MIN_AGREEMENT:.0%}), perplexity times "
            f"{self.perplexity_ratio:.4f} (at most {MAX_PERPLEXITY_RATIO})"
        )


MAX_DIVERGENCE = 0.02
MIN_AGREEMENT = 0.9
MAX_PERPLEXITY_RATIO = 1.02


def load_served(folder: Path, wanted: Weights, *, weights: Path | None = None) -> tuple[CausalDecoder, Weights]:
    """A base model ready to serve, and in which weights: those that are wanted, or fp32 where the check fails.

    weights: a folder whose weights stand for the model folder's own. What was found, and why the wanted ones were
    refused, is printed: it belongs in the engine's log.
    """
    model = load_decoder(folder, weights=weights)
    if wanted != "fp32":
        refused = _why_not(wanted, model)
        if refused is None:
            assert isinstance(model, Decoder)
            documents = _documents(folder, model)
            exact = [_expected(model, tokens) for tokens in documents]
            del model  # two of a large one would not fit
            model = _rounded(folder, wanted, weights)
            likeness = compare(documents, exact, (_expected(model, tokens) for tokens in documents))
            print(f"{wanted} weights against fp32: {likeness}", flush=True)
            if likeness.passes:
                return model, wanted
            refused = "its answers would differ too much"
            model = load_decoder(folder, weights=weights)
        print(f"{wanted} weights are refused for this model, which is served in fp32: {refused}", flush=True)
    model.pack()
    return model, "fp32"


def _why_not(wanted: Weights, model: CausalDecoder) -> str | None:
    if not isinstance(model, Decoder):
        return "its architecture is computed by transformers, with plain weights"
    if wanted == "int8":
        return why_no_int8()
    return None if multiplies_bf16() else "this processor has no bf16 products (avx512_bf16 or AMX)"


def _rounded(folder: Path, wanted: Weights, weights: Path | None) -> Decoder:
    numbers = BF16_PRODUCTS if wanted == "bf16" else None
    model = load_decoder(folder, weights=weights, numbers=numbers)
    assert isinstance(model, Decoder)
    model.pack(int8=wanted == "int8")
    return model


def compare(documents: Sequence[Sequence[int]], exact: Iterable[Tensor], rounded: Iterable[Tensor]) -> Likeness:
    """documents: token ids. exact, rounded: log probabilities [T, V] of each place's next token, in their order."""
    divergences, agreements, surprises = [], [], []
    for tokens, ours, theirs in zip(documents, exact, rounded, strict=True):
        divergences.append((ours.exp() * (ours - theirs)).sum(1))
        agreements.append((ours.argmax(1) == theirs.argmax(1)).float())
        following = torch.tensor(tokens[1:])[:, None]
        surprises.append((ours - theirs)[:-1].gather(1, following)[:, 0])
    return Likeness(
        divergence=float(torch.cat(divergences).mean()),
        agreement=float(torch.cat(agreements).mean()),
        perplexity_ratio=math.exp(min(float(torch.cat(surprises).mean()), 100.0)),
    )


@torch.inference_mode()
def _expected(model: Decoder, tokens: Sequence[int]) -> Tensor:
    attend = DocumentAttention((len(tokens),), model.shape.windows)
    hidden = model.forward(torch.tensor(tokens), torch.arange(len(tokens)), attend)
    return model.head(hidden).log_softmax(-1)


def _documents(folder: Path, model: Decoder) -> list[list[int]]:
    """The texts' tokens, no longer than the model's context; a tokenizer may know more than the model has rows for."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = (tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS)
    shape = model.shape
    return [[token for token in ids if token < shape.vocab_size][: shape.max_positions] for ids in encoded]
