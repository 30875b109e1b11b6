"""What this machine has: cores, memory, disk, an NVIDIA GPU. Reads the system; imports no compute library."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Sizes in bytes. cores: what this process may use at once, as a whole number of at least 1. gpu: its name."""

    cores: int
    memory_bytes: int
    memory_free_bytes: int
    gpu: str | None


def look() -> Machine:
    """This machine, as far as the process's control group lets it be used."""
    import psutil

    memory = psutil.virtual_memory()
    limit = memory_limit(CGROUP)
    total = min(memory.total, limit) if limit else memory.total
    return Machine(
        cores=usable_cores(CGROUP), memory_bytes=total, memory_free_bytes=min(memory.available, total), gpu=gpu()
    )


def usable_cores(cgroup: Path) -> int:
    """Cores by the scheduler's mask and the control group's quota, whichever is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    second = _words(cgroup / "cpu.max", 2)
    first = _words(cgroup / "cpu/cpu.cfs_quota_us", 1) + _words(cgroup / "cpu/cpu.cfs_period_us", 1)
    for words in (second, first):
        if len(words) == 2 and all(word.isdigit() for word in words):
            return max(1, min(cores, int(words[0]) // int(words[1])))
    return cores


def memory_limit(cgroup: Path) -> int | None:
    """The control group's memory limit in bytes; None when there is none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        words = _words(cgroup / name, 1)
        if words and words[0].isdigit():
            return int(words[0])
    return None


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


def _words(path: Path, count: int) -> tuple[str, ...]:
    try:
        words = tuple(path.read_text().split())
    except OSError:
        return ()
    return words if len(words) == count else ()
