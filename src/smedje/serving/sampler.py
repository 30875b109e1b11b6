"""Chooses the next token from a row of logits. Knows temperature, top_p, penalties, seeds and log-probabilities.

Refuses to know models, batches and grammars: of a grammar it sees which tokens may come next. A row is decided by its
own logits and its own generator, so neighbours in a batch cannot change a draw. One uniform number is used per token,
whatever the settings.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from smedje.domain.conversations import Sampling
from smedje.serving.engine import TokenLogprob
from smedje.serving.sequence import Sequence as TokenSequence

# Below this the softmax has one survivor in fp32 anyway.
GREEDY_BELOW = 1e-5
# Nearly every nucleus lies within so many likeliest tokens; where it does not, so many times as many are looked at.
FIRST_CANDIDATES = 256
CANDIDATES_GROWTH = 16
FORBIDDEN = -100.0
SEED_RANGE = 2**63
# In a token's place: there is none.
NO_TOKEN = -1


class Sampler:
    """Owns one random generator per sequence, so that a seeded draw depends on the seed and the token's place alone."""

    def __init__(self) -> None:
        self._generators: dict[int, torch.Generator] = {}

    def choose(self, sequences: Sequence[TokenSequence], logits: Tensor) -> list[int]:
        """Next token of each sequence; logits [R, V] in the same order.

        A sequence whose grammar has become too complex gets NO_TOKEN.
        """
        greedy: list[int] = logits.argmax(dim=-1).tolist()
        return [
            greedy[row] if _is_plainly_greedy(sequence) else self._choose(sequence, logits[row])
            for row, sequence in enumerate(sequences)
        ]

    def free(self, sequence_id: int) -> None:
        """Forget a sequence's generator; an unknown id is no error."""
        self._generators.pop(sequence_id, None)

    def _choose(self, sequence: TokenSequence, logits: Tensor) -> int:
        if sequence.constraint is None:
            return self._draw(sequence, logits)
        allowed = sequence.constraint.allowed()
        if allowed is None:
            return NO_TOKEN
        token = self._draw(sequence, logits, forbidden=forbidden_tokens(allowed, logits))
        sequence.constraint.accept(token)
        return token

    def _draw(self, sequence: TokenSequence, logits: Tensor, *, forbidden: Tensor | None = None) -> int:
        sampling = sequence.request.sampling
        bent = apply_penalties(apply_bias(logits, sampling), sampling, sequence.completion)
        if forbidden is not None:
            bent = apply_grammar(bent, forbidden, otherwise=logits)
        if sampling.temperature < GREEDY_BELOW:
            return int(bent.argmax())
        uniform = torch.rand((), generator=self._generator(sequence), dtype=torch.float64)
        return draw(probabilities(bent, temperature=sampling.temperature, top_p=sampling.top_p), float(uniform))

    def _generator(self, sequence: TokenSequence) -> torch.Generator:
        generator = self._generators.get(sequence.id)
        if generator is None:
            generator = self._generators[sequence.id] = torch.Generator()
            seed = sequence.request.sampling.seed
            if seed is None:
                generator.seed()
            else:
                generator.manual_seed(seed % SEED_RANGE)
        return generator


def _is_plainly_greedy(sequence: TokenSequence) -> bool:
    sampling = sequence.request.sampling
    bent = sampling.frequency_penalty or sampling.presence_penalty or sampling.logit_bias
    return sampling.temperature < GREEDY_BELOW and not bent and sequence.constraint is None


def forbidden_tokens(allowed: bytes, logits: Tensor) -> Tensor:
    """[V] true where a token may not come; allowed has one bit a token, the lowest first, for at least V tokens."""
    bits = np.unpackbits(np.frombuffer(allowed, dtype=np.uint8), count=logits.numel(), bitorder="little")
    return torch.from_numpy(bits == 0).to(logits.device)


def apply_grammar(logits: Tensor, forbidden: Tensor, *, otherwise: Tensor) -> Tensor:
    """Logits [V] with -inf for forbidden tokens. Where a bias forbids all that the grammar allows, the grammar holds,
    and the bias does not: the logits are then those of `otherwise` [V]."""
    kept = logits.masked_fill(forbidden, -torch.inf)
    return kept if bool(kept.max() > -torch.inf) else otherwise.masked_fill(forbidden, -torch.inf)


def apply_bias(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits [V] with each pair's number added to its token's; -100 and less forbid a token, as OpenAI documents."""
    if not sampling.logit_bias:
        return logits
    tokens = torch.tensor([token for token, _ in sampling.logit_bias], device=logits.device)
    added = [-torch.inf if bias <= FORBIDDEN else bias for _, bias in sampling.logit_bias]
    return logits.index_add(0, tokens, torch.tensor(added, dtype=logits.dtype, device=logits.device))


def apply_penalties(logits: Tensor, sampling: Sampling, completion: Sequence[int]) -> Tensor:
    """Logits [V] less c * frequency_penalty + presence_penalty for tokens chosen c > 0 times so far (OpenAI's rule)."""
    if not completion or not (sampling.frequency_penalty or sampling.presence_penalty):
        return logits
    counts = Counter(completion)
    tokens = torch.tensor(list(counts), device=logits.device)
    penalties = [count * sampling.frequency_penalty + sampling.presence_penalty for count in counts.values()]
    return logits.index_add(0, tokens, -torch.tensor(penalties, dtype=logits.dtype, device=logits.device))


def probabilities(logits: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """Probabilities [V] in fp32: softmax(logits / temperature) over the nucleus, zero outside.

    The nucleus is the smallest set of likeliest tokens whose probability reaches top_p, at least one token
    (Holtzman et al. 2020).
    """
    wide = logits.float()
    whole = torch.softmax((wide - wide.max()) / temperature, dim=0)
    if top_p >= 1.0:
        return whole
    count = min(FIRST_CANDIDATES, whole.numel())
    ordered, tokens = whole.topk(count)
    while count < whole.numel() and float(ordered.sum()) < top_p:
        count = min(CANDIDATES_GROWTH * count, whole.numel())
        ordered, tokens = whole.topk(count)
    before = ordered.double().cumsum(0) - ordered
    kept = before < top_p
    kept[0] = True
    nucleus = torch.zeros_like(whole)
    nucleus[tokens[kept]] = ordered[kept] / ordered[kept].sum()
    return nucleus


def draw(chances: Tensor, uniform: float) -> int:
    """The token at which the running sum of chances [V] passes uniform in [0, 1)."""
    running = chances.double().cumsum(0)
    token = int(torch.searchsorted(running, uniform * float(running[-1]), right=True))
    return token if token < chances.numel() else int(chances.argmax())


def logprobs(logits: Tensor, tokens: Sequence[int], wanted: Mapping[int, int]) -> dict[int, TokenLogprob]:
    """Log-probabilities of chosen tokens for the rows in `wanted` (row -> how many likeliest tokens to list).

    logits [R, V] as the model gave them: temperature, top_p, penalties and grammar do not show.
    """
    found: dict[int, TokenLogprob] = {}
    for row, count in wanted.items():
        logs = torch.log_softmax(logits[row].float(), dim=0)
        best = logs.topk(min(count, logs.numel()))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        found[row] = TokenLogprob(token=tokens[row], logprob=float(logs[tokens[row]]), top=top)
    return found
