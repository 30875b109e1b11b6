"""A data report as text. Knows the report's JSON shape; knows nothing of how problems are found."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from smedje.cli.output import print_table, say

SHOWN = 20
SHOWN_LINES = 6
LEVELS = " ▁▂▃▄▅▆▇█"


def print_report(report: Mapping[str, Any], *, shown: int = SHOWN) -> None:
    """The summary, the first `shown` problems with what to do about each, and the statistics."""
    problems = report.get("problems") or []
    say(str(report.get("summary") or f"verdict: {report.get('verdict')}"))
    if problems:
        say("")
    for one in problems[:shown]:
        where = "whole file" if not one.get("line") else f"line {one['line']}"
        say(f"{where}: {one.get('severity')} {one.get('code')} at {one.get('path')}")
        say(f"    {one.get('message')} {one.get('remedy')}")
    if len(problems) > shown:
        say(f"and {len(problems) - shown} more; --json prints them")
    say("")
    for name, value in _lines(report.get("statistics") or {}):
        say(f"  {name.replace('_', ' ')}: {value}")


def has_errors(report: Mapping[str, Any]) -> bool:
    """Whether a file with this report cannot be trained on."""
    return any(problem.get("severity") == "error" for problem in report.get("problems") or [])


def _lines(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        match value:
            case None | list() | tuple():
                continue  # a histogram, drawn as bars beside the insights
            case {"median": median, "p10": low, "p90": high, "max": most}:
                yield prefix + name, f"median {median}, most between {low} and {high}, longest {most}"
            case dict() if value and all(isinstance(part, int) for part in value.values()):
                yield prefix + name, ", ".join(f"{part} {number}" for part, number in value.items())
            case dict():
                yield from _lines(value, f"{name} ")
            case float():
                yield prefix + name, f"{value:.2f}"
            case _:
                yield prefix + name, str(value)


def print_whole(report: Mapping[str, Any]) -> None:
    """A file's report, what it is like, and what to type to mend it."""
    print_report({name: report[name] for name in ("problems", "statistics", "verdict", "summary")})
    print_insights(report["insights"])
    print_repairs(report["repairs"])


def print_pair(pair: Mapping[str, Any]) -> None:
    """The shares of labels and languages in a training file and its validation file."""
    for what, shares in pair.items():
        rows = [(name, f"{first:.1%}", f"{second:.1%}") for name, (first, second) in shares.items()]
        if rows:
            print_table((what.upper(), "TRAINING", "VALIDATION"), rows[:SHOWN], empty="")


def print_repairs(repairs: Sequence[Mapping[str, Any]]) -> None:
    """For each repair what it mends and what to type."""
    if repairs:
        say("")
        rows = [(", ".join(one["mends"]), one["command"]) for one in repairs]
        print_table(("TO MEND", "TYPE"), rows, empty="")


def print_insights(insights: Mapping[str, Any]) -> None:
    """The three things most worth mending, every finding, the languages and the bars of the examples' sizes."""
    for number, advice in enumerate(insights["advice"], 1):
        say(f"{number}. {advice}" if number > 1 else f"\nMost worth mending:\n1. {advice}")
    rows = [
        (one["code"], one["count"], ", ".join(map(str, one["lines"][:SHOWN_LINES])) or None, one["repair"])
        for one in insights["findings"]
    ]
    if rows:
        say("")
        print_table(("FINDING", "EXAMPLES", "FIRST LINES", "REPAIR STEP"), rows, empty="")
    say("")
    if insights["languages"]:
        say("languages (a guess): " + ", ".join(f"{name} {number}" for name, number in insights["languages"].items()))
    if insights["labels"]:
        say("answers that look like labels: " + ", ".join(f"{one} {n}" for one, n in insights["labels"].items()))
    for name, bars in insights["histograms"].items():
        say(f"{name} an example: {_bars(bars)}" if len(bars) != 1 else f"{name} an example: {bars[0]['low']} in each")


def _bars(bars: Sequence[Mapping[str, int]]) -> str:
    most = max((bar["count"] for bar in bars), default=0)
    if not most:
        return "none"
    drawn = "".join(LEVELS[-(-bar["count"] * (len(LEVELS) - 1) // most)] for bar in bars)
    return f"{bars[0]['low']} {drawn} {bars[-1]['high']}"
