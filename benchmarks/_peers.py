"""What the data benchmarks share: the peers' environment, and a command's seconds and peak memory."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from train_cpu import peer_python

ROOT = Path(__file__).resolve().parents[1]
PEERS_FOLDER = Path(tempfile.gettempdir()) / "smedje-bench-peers"
LOOK_SECONDS = 0.02


def peer_command(script: str, *words: str) -> list[str]:
    """A script of this folder in the environment that `train_cpu` makes for its peers, made on first use."""
    return [str(peer_python(PEERS_FOLDER)), str(ROOT / "benchmarks" / script), *words]


def measure(command: list[str], *, limit: float = 600.0) -> dict[str, Any]:
    """Run a command: seconds, peak resident bytes of its whole tree, and the JSON of its last line.

    Pages that processes share count once for each, so the peak is an upper bound. A command that fails tells its last
    line of errors as `failed`; one that runs longer than `limit` is killed.
    """
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        began = time.monotonic()
        child = subprocess.Popen(command, stdout=output, stderr=errors, cwd=ROOT, env=env)
        root, peak = psutil.Process(child.pid), 0
        while child.poll() is None:
            # A process may end between being listed and being looked at.
            with contextlib.suppress(psutil.Error):
                peak = max(peak, sum(one.memory_info().rss for one in [root, *root.children(recursive=True)]))
            if time.monotonic() - began > limit:
                child.kill()
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - began
        told = {"seconds": round(seconds, 2), "peak_mb": round(peak / 1e6, 1)}
        output.seek(0)
        errors.seek(0)
        if child.returncode != 0:
            lines = errors.read().decode(errors="replace").strip().splitlines() or [f"exit {child.returncode}"]
            return {**told, "failed": lines[-1][:300]}
        return {**told, **json.loads(output.read().decode().strip().splitlines()[-1])}


def ours(source: str, *words: str) -> list[str]:
    """A command that runs a piece of Python in this environment."""
    return [sys.executable, "-c", source, *words]


def write_report(report: dict[str, Any], path: Path | None) -> None:
    """Print the report, and keep it when there is a path."""
    text = json.dumps(report, indent=2)
    print(text)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
