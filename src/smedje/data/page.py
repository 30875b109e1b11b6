"""A data report as one HTML file without scripts, fonts or links to anything. Knows the report's JSON shape."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

SHOWN_PROBLEMS = 200
# Columns that hold what a program reads.
CODE = frozenset({"Command", "Request", "Field", "Code", "Repair step"})
WIDTH, HEIGHT, GAP = 640, 140, 2

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --bar: #2f6f9f; --bad: #b3261e; --warn: #8a5a00; --good: #1b6e3c; }
@media (prefers-color-scheme: dark) { :root { --bar: #7db7e0; --bad: #ffb4ab; --warn: #ffcf70; --good: #8fd9a8; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
.error { color: var(--bad); } .warning { color: var(--warn); } .ok { color: var(--good); }
.verdict { border-left: .4rem solid; padding: .4rem .8rem; font-size: 1.1rem; }
.axis { display: flex; justify-content: space-between; font-size: .85rem; border-top: 1px solid var(--line); }
.wide { overflow-x: auto; } figure { margin: 1rem 0; } rect { fill: var(--bar); } code { font-size: .9em; }
mark { background: #ffe08a; color: #000; } pre { white-space: pre-wrap; border: 1px solid var(--line); padding: .5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
"""


def report_page(report: Mapping[str, Any], *, title: str, views: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page of a report as `smedje data check --json` prints it. title: the file's name; any text is safe.

    views: lines as training sees them, in the JSON shape of `smedje data show`.
    """
    verdict = str(report["verdict"])
    name = escape(title)
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>Data report: {name}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><main>",
        f"<h1>Data report: {name}</h1>",
        f'<p class="verdict {escape(verdict)}"><strong>{escape(str(report["summary"]))}</strong></p>',
        *_sections(report),
        *_views(views),
        *_pair(report.get("pair") or {}),
        *_other(report.get("validation")),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _sections(report: Mapping[str, Any]) -> Iterator[str]:
    """Everything about one file."""
    insights = report.get("insights") or {}
    yield from _advice(insights)
    # What keeps the file from training stands before what would make it better.
    yield from _problems(report["problems"])
    yield from _findings(insights)
    yield from _repairs(report.get("repairs") or ())
    yield from _charts(insights.get("histograms") or {})
    yield from _counts("Languages (a guess from script and small words)", insights.get("languages"))
    yield from _counts("Answers that look like labels", insights.get("labels"))
    yield from _counts("Private data, examples of each kind", insights.get("private"))
    yield from _statistics(report["statistics"], insights)


def _repairs(repairs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [(", ".join(one["mends"]), one["command"], one.get("call", "")) for one in repairs]
    yield from _table("What mends it", ("Finding", "Command", "Request"), rows)


def _views(views: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines token by token; what is learnt is marked, and said in words for those who do not see the mark."""
    if not views:
        return
    yield "<h2>Lines as training sees them</h2><p>What is <mark>marked</mark> is learnt; the rest is context.</p>"
    for view in views:
        for example in view["examples"]:
            told = f"Line {view['line']}: {len(example['tokens'])} tokens, {example['trained']} learnt"
            yield f'<h3>{told}</h3><pre class="wide" tabindex="0" aria-label="{told}">'
            yield f"{_marked(example['tokens'])}</pre>"


def _marked(tokens: Sequence[Mapping[str, Any]]) -> str:
    pieces, learnt = [], False
    for token in tokens:
        if (token["weight"] > 0) is not learnt:
            learnt = not learnt
            pieces.append("<mark>" if learnt else "</mark>")
        pieces.append(f'<span title="{token["id"]}">{escape(token["text"])}</span>')
    return "".join(pieces) + ("</mark>" if learnt else "")


def _pair(pair: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterator[str]:
    for what, shares in pair.items():
        rows = [(name, f"{first:.1%}", f"{second:.1%}") for name, (first, second) in shares.items()]
        yield from _table(f"{what.capitalize()} in both files", ("", "Training", "Validation"), rows)


def _other(report: Mapping[str, Any] | None) -> Iterator[str]:
    if report is not None:
        yield f'<section><h1>Validation file</h1><p class="verdict {escape(report["verdict"])}"><strong>'
        yield f"{escape(report['summary'])}</strong></p>"
        yield from _sections(report)
        yield "</section>"


def _advice(insights: Mapping[str, Any]) -> Iterator[str]:
    if not insights.get("advice"):
        return
    yield "<h2>What is most worth mending</h2><ol>"
    for advice in insights["advice"]:
        yield f"<li>{escape(advice)}</li>"
    yield "</ol>"


def _findings(insights: Mapping[str, Any]) -> Iterator[str]:
    findings = insights.get("findings") or []
    rows = [(one["count"], one["message"], one["remedy"], _lines(one), one["repair"] or "") for one in findings]
    yield from _table("All findings", ("Examples", "Finding", "What to do", "Lines", "Repair step"), rows)


def _lines(finding: Mapping[str, Any]) -> str:
    lines = list(finding["lines"])
    more = " …" if finding["count"] > 12 else ""
    return ", ".join(str(line) for line in lines[:12]) + (more if lines else "")


def _charts(histograms: Mapping[str, Sequence[Mapping[str, int]]]) -> Iterator[str]:
    drawn = {name: bars for name, bars in histograms.items() if len(bars) > 1}
    alike = {name: bars[0] for name, bars in histograms.items() if len(bars) == 1}
    if drawn or alike:
        yield "<h2>Sizes of the examples</h2>"
    for name, bar in alike.items():
        yield f"<p>{name.capitalize()}: {_span(bar)} in each of {bar['count']:,} examples.</p>"
    if drawn:
        yield '<div class="charts">'
        for name, bars in drawn.items():
            yield _chart(name, bars)
        yield "</div>"


def _chart(name: str, bars: Sequence[Mapping[str, int]]) -> str:
    most = max(bar["count"] for bar in bars)
    width = WIDTH / len(bars)
    drawn = "".join(
        f'<rect x="{place * width:.1f}" y="{HEIGHT - HEIGHT * bar["count"] / most:.1f}" width="{width - GAP:.1f}" '
        f'height="{HEIGHT * bar["count"] / most:.1f}"><title>{_span(bar)} {escape(name)}: {bar["count"]}</title></rect>'
        for place, bar in enumerate(bars)
    )
    low, high = bars[0]["low"], bars[-1]["high"]
    peak = max(bars, key=lambda bar: bar["count"])
    told = f"{name.capitalize()} an example, from {low:,} to {high:,}; most often {_span(peak)} ({most:,} examples)."
    return (
        f'<figure><svg role="img" aria-label="{escape(told)}" viewBox="0 0 {WIDTH} {HEIGHT}" width="100%">{drawn}</svg>'
        f'<div class="axis" aria-hidden="true"><span>{low:,}</span><span>{high:,}</span></div>'
        f"<figcaption>{escape(told)}</figcaption></figure>"
    )


def _span(bar: Mapping[str, int]) -> str:
    return f"{bar['low']:,}" if bar["low"] == bar["high"] else f"{bar['low']:,} to {bar['high']:,}"


def _counts(title: str, counts: Mapping[str, int] | None) -> Iterator[str]:
    if counts:
        total = sum(counts.values())
        rows = [(name, number, f"{number / total:.1%}") for name, number in counts.items()]
        yield from _table(title, ("", "Examples", "Share"), rows)


def _statistics(values: Mapping[str, Any], insights: Mapping[str, Any]) -> Iterator[str]:
    tokens = values.get("tokens") or {}
    counts = {**values, **tokens, **{f"{role} messages": n for role, n in values.get("messages_by_role", {}).items()}}
    rows = [(name.replace("_", " "), value) for name, value in counts.items() if isinstance(value, int | float)]
    spread = [
        (name.replace("_", " "), *(value.get(key, "") for key in ("min", "p10", "median", "p90", "p99", "max")))
        for name, value in {**values, **insights, **tokens}.items()
        if isinstance(value, Mapping) and "median" in value
    ]
    yield from _table("Counts", ("", ""), rows)
    yield from _table("Distributions", ("", "least", "10 %", "median", "90 %", "99 %", "most"), spread)


def _problems(problems: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not problems:
        return
    keys = ("line", "path", "severity", "code", "message", "remedy")
    rows = [tuple(problem[key] for key in keys) for problem in problems[:SHOWN_PROBLEMS]]
    more = f", the first {SHOWN_PROBLEMS}" if len(problems) > SHOWN_PROBLEMS else ""
    yield from _table(f"Problems{more}", ("Line", "Field", "Severity", "Code", "Problem", "What to do"), rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    # A column that says nothing in any row is left out.
    kept = [place for place in range(len(columns)) if place == 0 or any(row[place] not in ("", None) for row in rows)]
    if not rows:
        return
    yield f'<h2>{escape(title)}</h2><div class="wide" tabindex="0" role="region" aria-label="{escape(title)}"><table>'
    if any(columns):
        heads = "".join(f'<th scope="col">{escape(columns[place])}</th>' for place in kept)
        yield f"<thead><tr>{heads}</tr></thead>"
    yield "<tbody>"
    for row in rows:
        cells = "".join(f"<td>{_cell(row[place], code=columns[place] in CODE)}</td>" for place in kept[1:])
        yield f'<tr><th scope="row">{_cell(row[0])}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def _cell(value: object, *, code: bool = False) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return f"<code>{escape(text)}</code>" if code and text else escape(text)
