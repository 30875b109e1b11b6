"""What this machine has: cores, memory, disk, an NVIDIA GPU. Reads the system; imports no compute library."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from smedje.objects.machine import usable_cores, usable_memory


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
    total = usable_memory()
    return Machine(cores=usable_cores(), memory_bytes=total, memory_free_bytes=min(memory.available, total), gpu=gpu())


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
