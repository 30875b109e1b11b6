"""The data report: problems, statistics and a verdict as plain values, and as JSON. Knows no rule and reads no file."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import msgspec

from smedje.data.problems import KEPT_PROBLEMS, Problem

# From here on sorting Python numbers costs more memory than loading numpy.
LARGE = 100_000

Verdict = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Distribution:
    """How a number is distributed. Percentiles are nearest-rank: values that really occur."""

    count: int
    total: int
    min: int
    p10: int
    median: int
    mean: float
    p90: int
    max: int
    p99: int = 0


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: `count` values from `low` to `high`, both included."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class TokenStatistics:
    """Tokens of the examples in one base model's tokenizer.

    examples: training examples after rendering; more than lines where a template needs one for each answer.
    tokens, trained_tokens: for one epoch; `tokens` is what usage counts. trained_share: trained_tokens / tokens.
    limit: most tokens an example may have, None for no limit. problem_codes: how often each problem occurs.
    over_limit: examples above the limit; tokens_over_limit: what cutting them there would lose.
    histogram: bars of tokens an example.
    """

    examples: int
    tokens: int
    trained_tokens: int
    trained_share: float
    tokens_per_example: Distribution | None
    trained_tokens_per_example: Distribution | None
    limit: int | None
    problem_codes: Mapping[str, int]
    over_limit: int = 0
    tokens_over_limit: int = 0
    histogram: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """Facts of a file.

    examples: lines that are not blank; valid_examples: those without an error. bytes: the file's size.
    messages_by_role: messages of each role. messages_per_example, user_characters, assistant_characters:
    distributions over examples and over messages, None where there are none. system_prompt_share: share of valid
    examples with a system message. duplicate_examples: valid examples that repeat an earlier one. errors, warnings,
    problem_codes: how many problems in all, and how often each occurs. tokens: None unless they were checked too.
    """

    examples: int = 0
    valid_examples: int = 0
    bytes: int = 0
    messages_by_role: Mapping[str, int] = field(default_factory=dict)
    messages_per_example: Distribution | None = None
    user_characters: Distribution | None = None
    assistant_characters: Distribution | None = None
    system_prompt_share: float = 0.0
    duplicate_examples: int = 0
    errors: int = 0
    warnings: int = 0
    problem_codes: Mapping[str, int] = field(default_factory=dict)
    tokens: TokenStatistics | None = None


@dataclass(frozen=True)
class Report:
    """What a check of a file found. problems: at most a thousand, by line; statistics count them all.

    verdict: "error" when the file cannot be trained on, "warning" when it can but should be looked at, else "ok".
    """

    problems: tuple[Problem, ...]
    statistics: Statistics

    @property
    def verdict(self) -> Verdict:
        """One word for programs."""
        if self.statistics.errors:
            return "error"
        return "warning" if self.statistics.warnings else "ok"

    @property
    def summary(self) -> str:
        """One or two sentences for people."""
        found = self.statistics
        counted = f"{found.examples} {'example' if found.examples == 1 else 'examples'}"
        if found.errors:
            named = {problem.code for problem in self.problems if problem.severity == "error"}
            codes = {code: number for code, number in found.problem_codes.items() if code in named}
            most = ", ".join(f"{number} x {code}" for code, number in _most(codes))
            return f"Not ready: {_plural(found.errors, 'error')} in {counted} ({most}). Mend them and upload again."
        if found.warnings:
            return f"Ready to train: {counted}, with {_plural(found.warnings, 'warning')} to look at."
        return f"Ready to train: {counted} without a problem."


def distribution(values: Sequence[int]) -> Distribution | None:
    """The distribution of `values`, None when there are none."""
    if not values:
        return None
    if len(values) > LARGE:
        return _large_distribution(values)
    ordered = array("Q", sorted(values))

    def percentile(share: int) -> int:
        return ordered[max(0, -(-share * len(ordered) // 100) - 1)]

    return Distribution(
        count=len(ordered),
        total=sum(ordered),
        min=ordered[0],
        p10=percentile(10),
        median=percentile(50),
        mean=sum(ordered) / len(ordered),
        p90=percentile(90),
        max=ordered[-1],
        p99=percentile(99),
    )


def histogram(values: Sequence[int], *, bars: int = 20) -> tuple[Bar, ...]:
    """At most `bars` bars of equal width from the least to the largest value; none when there are no values."""
    if not values:
        return ()
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // bars))
    counts = [0] * ((high - low) // width + 1)
    for value in values:
        counts[(value - low) // width] += 1
    return tuple(Bar(low + place * width, low + (place + 1) * width - 1, count) for place, count in enumerate(counts))


def _large_distribution(values: Sequence[int]) -> Distribution:
    """The same in a few bytes a value."""
    import numpy as np

    ordered = np.sort(np.asarray(values, dtype=np.uint32))
    ranks = {share: int(ordered[max(0, -(-share * len(ordered) // 100) - 1)]) for share in (10, 50, 90, 99)}
    total = int(ordered.sum(dtype=np.uint64))
    return Distribution(
        count=len(ordered),
        total=total,
        min=int(ordered[0]),
        p10=ranks[10],
        median=ranks[50],
        mean=total / len(ordered),
        p90=ranks[90],
        max=int(ordered[-1]),
        p99=ranks[99],
    )


def with_tokens(report: Report, problems: Iterable[Problem], tokens: TokenStatistics) -> Report:
    """The report with what `count_tokens` found; all of its problems are errors."""
    errors = sum(tokens.problem_codes.values())
    codes = dict(Counter(report.statistics.problem_codes) + Counter(tokens.problem_codes))
    found = replace(report.statistics, tokens=tokens, errors=report.statistics.errors + errors, problem_codes=codes)
    by_weight = sorted([*report.problems, *problems], key=lambda problem: (problem.severity, problem.line))
    return Report(tuple(sorted(by_weight[:KEPT_PROBLEMS], key=lambda problem: problem.line)), found)


def report_to_dict(report: Report) -> dict[str, Any]:
    """The report's stable JSON shape: problems, statistics, verdict, summary."""
    return {
        "problems": [asdict(problem) for problem in report.problems],
        "statistics": asdict(report.statistics),
        "verdict": report.verdict,
        "summary": report.summary,
    }


def report_to_json(report: Report) -> bytes:
    """`report_to_dict` as UTF-8 JSON."""
    return msgspec.json.encode(report_to_dict(report))


def _most(codes: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(codes.items(), key=lambda item: (-item[1], item[0]))[:3]


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
