"""The picture of train_cpu.py's figures: a group of bars a workload, real tokens a second. Plain SVG, no library."""

from typing import Any

COLOURS = ("#1f5fa8", "#58a0dc", "#9cc9ee", "#c2571a", "#e88b4d", "#8a8a8a", "#b5b5b5", "#d0d0d0", "#6a6a6a", "#e0e0e0")
BAR, GAP, HEIGHT, LEFT, TOP = 16, 26, 260, 56, 40


def plot(workloads: dict[str, Any]) -> str:
    """The SVG's text."""
    names = list(dict.fromkeys(name for engines in workloads.values() for name in engines))
    rates = {
        (workload, name): entry["figures"].get("tokens_per_second", 0.0)
        for workload, engines in workloads.items()
        for name, entry in engines.items()
        if "figures" in entry
    }
    top = max(rates.values(), default=1.0) or 1.0
    parts, x = [], LEFT + GAP
    for workload in sorted(workloads):
        start = x
        for number, name in enumerate(names):
            rate = rates.get((workload, name))
            if rate is None:
                continue
            tall = HEIGHT * rate / top
            colour = COLOURS[number % len(COLOURS)]
            parts.append(_box(x, TOP + HEIGHT - tall, BAR - 2, tall, colour))
            parts.append(_text(x + BAR / 2 - 1, TOP + HEIGHT - tall - 4, f"{rate:.0f}", size=9, middle=True))
            x += BAR
        parts.append(_text((start + x) / 2, TOP + HEIGHT + 18, workload, size=13, middle=True))
        x += GAP
    for number, name in enumerate(names):
        y = TOP + HEIGHT + 40 + 18 * number
        parts.append(_box(LEFT, y - 10, 12, 12, COLOURS[number % len(COLOURS)]))
        parts.append(_text(LEFT + 18, y, name, size=12))
    parts.append(_text(LEFT, 22, "LoRA on a CPU: real tokens a second (higher is better)", size=14))
    size = f'width="{max(x, 480)}" height="{TOP + HEIGHT + 50 + 18 * len(names)}"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">\n{body}\n</svg>\n'


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, *, size: int, middle: bool = False) -> str:
    anchor = ' text-anchor="middle"' if middle else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}"{anchor}>{text}</text>'
