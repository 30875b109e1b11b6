"""What this process may use of its machine: cores, memory, a GPU, by the system's own word. Imports no compute library.

One truth for the server, its workers and `smedje doctor`. Knows Linux control groups; refuses to know what for.
"""

import functools
import os
import shutil
import subprocess
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores by the scheduler's mask and the control group's quota, whichever is less; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    second = _words(cgroup / "cpu.max", 2)
    first = _words(cgroup / "cpu/cpu.cfs_quota_us", 1) + _words(cgroup / "cpu/cpu.cfs_period_us", 1)
    for words in (second, first):
        if len(words) == 2 and all(word.isdigit() for word in words):
            return max(1, min(cores, int(words[0]) // int(words[1])))
    return cores


def usable_memory() -> int:
    """Bytes of memory of the machine, or of the control group where that has a smaller limit."""
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = memory_limit()
    return total if limit is None else min(total, limit)


def memory_limit(cgroup: Path = CGROUP) -> int | None:
    """The control group's memory limit in bytes; None when there is none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        words = _words(cgroup / name, 1)
        if words and words[0].isdigit():
            return int(words[0])
    return None


@functools.cache
def gpu() -> str | None:
    """The first NVIDIA GPU's name, "NVIDIA" when only its driver shows, None without one."""
    program = shutil.which("nvidia-smi")
    if program:
        command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return "NVIDIA"
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout.splitlines()[0].strip()
    return "NVIDIA" if Path("/proc/driver/nvidia/version").exists() else None


def gpu_memory() -> int | None:
    """Bytes of memory of the first NVIDIA GPU; None where there is none, or its driver does not say."""
    name, _, size = (gpu() or "").rpartition(",")
    words = size.split()
    return int(words[0]) * 2**20 if name and len(words) == 2 and words[0].isdigit() and words[1] == "MiB" else None


def training_memory(device: str) -> int:
    """Bytes that a run on this device may fill: the GPU's on "cuda", the process's share of the machine's else."""
    card = gpu_memory() if device == "cuda" else None
    return usable_memory() if card is None else card


def _words(path: Path, count: int) -> tuple[str, ...]:
    try:
        words = tuple(path.read_text().split())
    except OSError:
        return ()
    return words if len(words) == count else ()
