"""From sums to the figures of a step: means, and macro-F1 where there are classes. Plain numbers, no torch calls."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from smedje.training.objectives import Sums


@dataclass(frozen=True, kw_only=True)
class Figures:
    """loss: mean nats (weighted). accuracy: share of hits. more: further means by name."""

    loss: float
    accuracy: float
    more: dict[str, float] = field(default_factory=dict)


def figures_of(sums: Sequence[Sums]) -> Figures:
    """The means of these sums. A non-finite loss is returned as it is: hiding it would be a lie."""
    weight = sum(s.weight for s in sums)
    count = sum(s.count for s in sums)
    more = {name: math.fsum(s.figures[name] for s in sums) / count for name in sums[0].figures}
    guesses = [pair for s in sums for pair in s.guesses]
    if guesses:
        more["macro_f1"] = macro_f1(guesses)
    loss = math.fsum(float(s.loss.detach()) for s in sums) / weight
    return Figures(loss=loss, accuracy=sum(s.correct for s in sums) / count, more=more)


def macro_f1(guesses: Sequence[tuple[int, int]]) -> float:
    """Mean F1 over the classes that occur as label or guess, as scikit-learn counts it; guesses: (label, guess)."""
    labels, guessed = Counter(label for label, _ in guesses), Counter(guess for _, guess in guesses)
    hits = Counter(label for label, guess in guesses if label == guess)
    classes = labels.keys() | guessed.keys()
    return math.fsum(2 * hits[c] / (labels[c] + guessed[c]) for c in classes) / len(classes)
