"""What a data file is like, beyond whether it is valid: copies, contradictions, balance, languages, private data.

Looks at valid examples only, at most the first LOOKED_AT of them. Knows texts; refuses to know tokens and servers, and
never hands on what it found, only kinds and lines.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from smedje.data.forms import Form, Item, form_of, read_items
from smedje.data.language import guess_language
from smedje.data.near import NearIndex, normal
from smedje.data.parse import ChatExample
from smedje.data.report import Bar, Distribution, TokenStatistics, distribution, histogram
from smedje.data.said import LONGEST_LABEL, answer, is_boilerplate, label_counts, private_kinds, question, spoken

LOOKED_AT = 50_000
SHOWN_LINES = 100
_VERB = re.compile(r"(\w+)\|(\w+)")


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing. lines: the first hundred, 1-based; count: all. repair: the step that mends it, if any.

    weight: how much it is likely to hurt, for the order; not a probability.
    """

    code: str
    message: str
    remedy: str
    count: int
    lines: tuple[int, ...] = ()
    repair: str | None = None
    weight: float = 0.0


@dataclass(frozen=True)
class Insights:
    """What was seen. findings: heaviest first. languages: examples by guessed ISO 639-1 code, "?" for no guess.
    turns_per_example: assistant messages.

    labels: how often each answer stands, when the answers look like labels. private: kind of private data to examples.
    histograms: bars of messages and characters an example, and of tokens when a base model was named.
    """

    examples: int
    form: Form = "chat"
    findings: tuple[Finding, ...] = ()
    languages: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, int] | None = None
    private: Mapping[str, int] = field(default_factory=dict)
    characters_per_example: Distribution | None = None
    turns_per_example: Distribution | None = None
    histograms: Mapping[str, tuple[Bar, ...]] = field(default_factory=dict)

    @property
    def advice(self) -> tuple[str, ...]:
        """The three things most worth mending, as sentences."""
        return tuple(f"{found.message} {found.remedy}" for found in self.findings[:3])


def look_at(path: Path, *, limit: int = LOOKED_AT, shown: int = SHOWN_LINES) -> Insights:
    """What the first `limit` valid examples of a data file are like, whatever its form.

    shown: the most lines that a finding names.
    """
    form = form_of(path)
    look = _Look(form)
    for item in read_items(path, form):
        if item.example is not None:
            look.take(item, item.example)
            if look.examples >= limit:
                break
    insights = look.insights()
    return replace(insights, findings=shortened(insights.findings, shown))


def with_token_bars(insights: Insights, tokens: TokenStatistics) -> Insights:
    """The insights with the bars of the examples' tokens, and how much is trained when that is little."""
    findings = list(insights.findings)
    if tokens.over_limit:
        many = "1 example is" if tokens.over_limit == 1 else f"{tokens.over_limit} examples are"
        text = f"{many} longer than {tokens.limit} tokens and would be refused."
        remedy = "Shorten or drop them, or raise max_tokens_per_example."
        findings.append(Finding("example_too_long", text, remedy, tokens.over_limit, (), "drop_too_long", 8))
    if tokens.tokens and tokens.trained_share < 0.05:
        share = f"Only {tokens.trained_share:.1%} of the tokens are learnt; the rest is prompt."
        findings.append(Finding("little_is_trained", share, "Shorten the prompts.", tokens.examples, weight=3))
    bars = {**insights.histograms, "tokens": tokens.histogram}
    return replace(insights, findings=by_weight(findings), histograms=bars)


def by_weight(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The heaviest first."""
    return tuple(sorted(findings, key=lambda found: -found.weight))


def finding(
    code: str, message: str, lines: Sequence[int], remedy: str, *, repair: str | None = None, weight: float
) -> Finding | None:
    """The finding of these lines, None where there are none.

    message: `{}` stands for "3 examples", "holds|hold" for the word for one and the word for more.
    """
    if not lines:
        return None
    one = len(lines) == 1
    text = _VERB.sub(lambda found: found.group(1 if one else 2), message)
    text = text.format("1 example" if one else f"{len(lines)} examples") + "."
    return Finding(code, text, remedy, len(lines), tuple(lines), repair, weight)


def shortened(findings: Iterable[Finding], shown: int) -> tuple[Finding, ...]:
    """The findings with at most so many lines each."""
    return tuple(replace(found, lines=found.lines[:shown]) for found in findings)


class _Look:
    """Collects while the examples go by."""

    def __init__(self, form: Form) -> None:
        self.examples = 0
        self._form = form
        self._near = NearIndex()
        self._digests: set[int] = set()
        self._copies: list[int] = []
        self._near_copies: list[int] = []
        self._questions: dict[bytes, tuple[int, bytes]] = {}
        self._contradictions: list[int] = []
        self._without_system: list[int] = []
        self._boilerplate: list[int] = []
        self._private: dict[str, list[int]] = {}
        self._languages: Counter[str] = Counter()
        self._answers: list[str] = []
        self._messages: list[int] = []
        self._turns: list[int] = []
        self._preferred: set[bytes] = set()
        self._characters: list[int] = []

    def take(self, item: Item, example: ChatExample) -> None:
        """The next example, which is the item's."""
        self.examples += 1
        text, said = spoken(example), answer(example)
        self._messages.append(len(example.messages))
        self._turns.append(sum(one.role == "assistant" for one in example.messages))
        self._characters.append(sum(len(one.content or "") for one in example.messages))
        self._languages[guess_language(text) or "?"] += 1
        self._answers.append(said if len(said) <= LONGEST_LABEL else "")
        if example.messages[0].role not in ("system", "developer"):
            self._without_system.append(example.line)
        if is_boilerplate(said) and not example.messages[-1].tool_calls and self._form != "classification":
            self._boilerplate.append(example.line)
        for kind in private_kinds(*(one for one in (example, item.other) if one is not None)):
            self._private.setdefault(kind, []).append(example.line)
        self._compare(item, example, text, said)

    def _compare(self, item: Item, example: ChatExample, text: str, said: str) -> None:
        if item.digest in self._digests:
            self._copies.append(example.line)
            return
        self._digests.add(item.digest)
        told = blake2b(normal(said), digest_size=16).digest()
        asked = question(example)
        if item.other is not None:
            # Several pairs of one prompt are usual; the same two answers the other way round are not.
            worse = blake2b(normal(answer(item.other)), digest_size=16).digest()
            self._preferred.add(asked + told + worse)
            if asked + worse + told in self._preferred:
                self._contradictions.append(example.line)
            return
        first = self._questions.setdefault(asked, (example.line, told))
        if first[1] != told and not example.messages[-1].tool_calls:
            self._contradictions.append(example.line)
        elif self._near.add(example.line, text) is not None:
            self._near_copies.append(example.line)

    def insights(self) -> Insights:
        """What was seen."""
        labels = label_counts(self._answers)
        found = [
            *self._copy_findings(),
            *self._private_findings(),
            finding(
                "boilerplate_answer",
                "{} says|say nothing in the answer, or refuses|refuse",
                self._boilerplate,
                "Write the answer that you want, or drop them.",
                repair="drop_boilerplate",
                weight=5,
            ),
            self._mixed_system(),
            _unbalanced(labels),
        ]
        return Insights(
            examples=self.examples,
            form=self._form,
            findings=by_weight(one for one in found if one is not None),
            languages=dict(self._languages.most_common()),
            labels=labels,
            private={kind: len(lines) for kind, lines in sorted(self._private.items())},
            characters_per_example=distribution(self._characters),
            turns_per_example=distribution(self._turns),
            histograms={
                "messages": histogram(self._messages),
                "turns": histogram(self._turns),
                "characters": histogram(self._characters),
            },
        )

    def _copy_findings(self) -> list[Finding | None]:
        share = len(self._copies) / max(1, self.examples)
        pairs = self._form == "preference"
        otherwise = "prefers|prefer what an earlier line finds worse" if pairs else "answers|answer otherwise"
        return [
            finding(
                "contradictory_answer",
                f"{{}} asks|ask what an earlier line asks and {otherwise}",
                self._contradictions,
                "Decide which answer is right; the model would learn to guess.",
                repair="drop_contradictions",
                weight=6,
            ),
            finding(
                "duplicate_example",
                "{} repeats|repeat an earlier line word for word",
                self._copies,
                "Remove the copies: they count double.",
                repair="drop_duplicates",
                weight=2 + 6 * share,
            ),
            finding(
                "near_duplicate",
                "{} nearly repeats|repeat an earlier line",
                self._near_copies,
                "Keep one of each, or make them differ.",
                repair="drop_near_duplicates",
                weight=2 + 3 * len(self._near_copies) / max(1, self.examples),
            ),
        ]

    def _private_findings(self) -> list[Finding | None]:
        return [
            finding(
                f"private_{kind}",
                f"{{}} holds|hold {'an API key' if kind == 'api_key' else 'private data of the kind ' + kind}",
                lines,
                "The model could repeat it to others. Redact it.",
                repair="redact",
                weight=10 if kind == "api_key" else 8 if kind in ("card", "iban", "cpr") else 4,
            )
            for kind, lines in sorted(self._private.items())
        ]

    def _mixed_system(self) -> Finding | None:
        if len(self._without_system) == self.examples:
            return None
        return finding(
            "missing_system_prompt",
            "{} has|have no system prompt while others have one",
            self._without_system,
            "Give every example the system prompt that the model will be used with.",
            repair="add_system_prompt",
            weight=3,
        )


def _unbalanced(labels: Mapping[str, int] | None) -> Finding | None:
    if not labels:
        return None
    most, fewest = max(labels.values()), min(labels.values())
    if most <= 5 * fewest:
        return None
    rare = sum(number * 5 < most for number in labels.values())
    message = (
        f"The answers look like {len(labels)} labels; the commonest stands {most} times, the rarest {fewest} times."
    )
    return Finding(
        "unbalanced_labels", message, "Add examples of the rare ones, or rebalance.", rare, (), "rebalance", 4
    )


def insights_to_dict(insights: Insights) -> dict[str, Any]:
    """The insights' stable JSON shape, with the advice."""
    body: dict[str, Any] = msgspec.to_builtins(insights)
    return {"advice": list(insights.advice), **body}
