"""Draws the pictures of data reports in docs/images: python benchmarks/report_pictures.py [--chromium PROGRAM]

Runs `smedje data check` on the sample set and on a bad set that is written here, and keeps what a terminal shows as SVG
and the HTML page as PNG. Run it again when a report looks different.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from io import StringIO
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
SAMPLES = ROOT / "src" / "smedje" / "samples"
COLUMNS = 120
WIDTH, HEIGHT = 1000, 1700
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def bad_set() -> bytes:
    """Rows as people write them in a hurry: valid ones, faults that stop a job, and things that only look harmless."""

    def row(question: object, answer: object, **columns: object) -> bytes:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return json.dumps({"messages": messages, **columns}, ensure_ascii=False).encode()

    good = [
        row(f"How do I reset machine number {number}?", f"Hold the button for {number} seconds, then wait.")
        for number in range(2, 9)
    ]
    lines = [
        *good,
        row("My parcel 4711 has not come.", "It left the depot this morning and comes tomorrow."),
        row("My parcel 4711 has not come.", "We are sorry, it is lost."),
        row("Who do I write to?", "Write to jane.doe@example.com or call +45 21 22 23 24."),
        row("Can I pay by card?", "Yes, for instance with 4111 1111 1111 1111."),
        row("Where is the manual?", "N/A"),
        good[0],
        row("How do I reset machine number 2 ?", "Hold the button for 2 seconds, then wait please."),
        b'{"prompt": "Where is it?", "completion": "On its way."}',
        b'{"messages": [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "con',
        row("Where is it?", "On its way.").replace(b'"user"', b'"human"'),
        row("Where is it?", " "),
        row("Where is it?", "On its way.<|im_end|>"),
        b'{"messages": [{"role": "user", "content": "Caf\xe9?"}]}',
        b'{"messages": [{"role": "assistant", "content": "Hello."}]}',
        row("Is it open?", "Yes.", tools={}),
    ]
    return b"\n".join(lines) + b"\n"


def check(path: Path, page: Path) -> str:
    """What `smedje data check` prints on a terminal of 120 columns, with its colours; its page is written too."""
    command = [sys.executable, "-m", "smedje.cli", "data", "check", path.name, "--html", page.name]
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    env["TERM"] = "xterm-256color"
    child = subprocess.Popen(command, cwd=path.parent, env=env, stdout=terminal, stderr=terminal)
    os.close(terminal)
    printed = bytearray()
    # Reading a terminal whose other side was closed is an error on Linux.
    with contextlib.suppress(OSError):
        while piece := os.read(master, 65536):
            printed += piece
    child.wait()
    os.close(master)
    return printed.decode().replace("\r\n", "\n")


def terminal_picture(printed: str, title: str, target: Path) -> None:
    """The text as the picture of a terminal."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), legacy_windows=False)
    console.print(Text.from_ansi(f"$ smedje data check {title} --html report.html\n{printed.rstrip()}"))
    drawn = console.export_svg(title=title, theme=DEFAULT_TERMINAL_THEME)
    # No font from elsewhere: the reader's own will do.
    drawn = re.sub(r"@font-face \{.*?\}\n?", "", drawn, flags=re.DOTALL).replace("Fira Code, ", "")
    target.write_text("\n".join(line.rstrip() for line in drawn.splitlines()) + "\n", encoding="utf-8")


def page_picture(page: Path, target: Path, chromium: str) -> None:
    """The page as a browser shows it, its beginning."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=list(QUIET), viewport={"width": WIDTH, "height": HEIGHT}
        )
        tab = browser.new_page()
        tab.goto(page.as_uri())
        height = int(tab.evaluate("document.documentElement.getBoundingClientRect().height"))
        tab.screenshot(path=target, clip={"x": 0, "y": 0, "width": WIDTH, "height": min(height + 20, HEIGHT)})
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--out", type=Path, default=IMAGES)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        sample = (SAMPLES / "support_train.jsonl").read_bytes()
        for kind, file, rows in (("sample", "support_train.jsonl", sample), ("bad", "bad.jsonl", bad_set())):
            folder = Path(name) / kind
            folder.mkdir()
            (folder / file).write_bytes(rows)
            page = folder / "report.html"
            printed = check(folder / file, page)
            terminal_picture(printed, file, given.out / f"report-{kind}-terminal.svg")
            page_picture(page, given.out / f"report-{kind}-page.png", given.chromium)
    for picture in sorted(given.out.glob("report-*")):
        print(f"{picture.name}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
