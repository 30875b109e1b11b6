"""What this process may use of its machine: cores, memory, a GPU, by the system's own word. Imports no compute library.

One truth for the server, its workers and `smedje doctor`. Knows Linux control groups; refuses to know what for.
"""

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
# Share of the memory that stays free beside what only waits: a process kept ready, keys and values that rest.
FREE_SHARE = 0.15


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


def free_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that can be taken now without swapping: of the machine, or what its control group has left, if less."""
    import psutil

    available, limit = int(psutil.virtual_memory().available), memory_limit(cgroup)
    used = _words(cgroup / "memory.current", 1) or _words(cgroup / "memory/memory.usage_in_bytes", 1)
    if limit is None or not used:
        return available
    stat = dict(line.split() for line in _lines(cgroup / "memory.stat") or _lines(cgroup / "memory/memory.stat"))
    # Pages of files that nobody has read lately go when memory is wanted.
    reclaimable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return max(0, min(available, limit - int(used[0]) + reclaimable))


def missing_memory() -> int:
    """Bytes that are missing for FREE_SHARE of the memory to be free; 0 when it is."""
    return max(0, int(FREE_SHARE * usable_memory()) - free_memory())


def return_memory() -> None:
    """Give memory that was freed back to the system, where the C library would keep it for later."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


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


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path, count: int) -> tuple[str, ...]:
    words = tuple(" ".join(_lines(path)).split())
    return words if len(words) == count else ()
