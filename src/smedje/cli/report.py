"""A data report as text. Knows the report's JSON shape; knows nothing of how problems are found."""

from collections.abc import Iterator, Mapping
from typing import Any

from smedje.cli.output import print_table, say

SHOWN = 20


def print_report(report: Mapping[str, Any], *, shown: int = SHOWN) -> None:
    """The summary, the statistics, and the first `shown` problems with what to do about each."""
    problems = report.get("problems") or []
    say(str(report.get("summary") or f"verdict: {report.get('verdict')}"))
    for name, value in _lines(report.get("statistics") or {}):
        say(f"  {name.replace('_', ' ')}: {value}")
    if problems:
        rows = [
            (p.get("line"), p.get("path"), p.get("severity"), p.get("code"), p.get("message"), p.get("remedy"))
            for p in problems[:shown]
        ]
        print_table(("LINE", "FIELD", "SEVERITY", "CODE", "PROBLEM", "WHAT TO DO"), rows, empty="")
    if len(problems) > shown:
        say(f"and {len(problems) - shown} more; --json prints them")


def has_errors(report: Mapping[str, Any]) -> bool:
    """Whether a file with this report cannot be trained on."""
    return any(problem.get("severity") == "error" for problem in report.get("problems") or [])


def _lines(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        match value:
            case None:
                continue
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
