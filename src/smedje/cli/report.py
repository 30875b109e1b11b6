"""A data report as text. Knows the report's JSON shape; knows nothing of how problems are found."""

from collections.abc import Mapping
from typing import Any

from smedje.cli.output import print_table, say

SHOWN = 20


def print_report(report: Mapping[str, Any], *, shown: int = SHOWN) -> None:
    """The verdict, the statistics, and the first `shown` problems with what to do about each."""
    problems = report.get("problems") or []
    say(f"verdict: {report.get('verdict', '-')}")
    for name, value in _flat(report.get("statistics") or {}):
        say(f"  {name.replace('_', ' ')}: {value}")
    if problems:
        rows = [
            (p.get("line"), p.get("path") or None, p.get("severity"), p.get("code"), p.get("message"), p.get("remedy"))
            for p in problems[:shown]
        ]
        print_table(("LINE", "FIELD", "SEVERITY", "CODE", "PROBLEM", "WHAT TO DO"), rows, empty="")
    if len(problems) > shown:
        say(f"and {len(problems) - shown} more; --json prints them all")


def has_errors(report: Mapping[str, Any]) -> bool:
    """Whether a file with this report cannot be trained on."""
    return any(problem.get("severity") == "error" for problem in report.get("problems") or [])


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name} ")
        elif isinstance(value, list):
            rows.append(
                (prefix + name, ", ".join(str(item) for item in value[:12]) + (" ..." if len(value) > 12 else ""))
            )
        else:
            rows.append((prefix + name, f"{value:.2f}" if isinstance(value, float) else str(value)))
    return rows
