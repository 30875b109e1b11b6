"""What this machine has: cores, memory, disk, an NVIDIA GPU. Reads the system; imports no compute library."""

from dataclasses import dataclass

from smedje.objects.machine import free_memory, gpu, usable_cores, usable_memory


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Sizes in bytes. cores: what this process may use at once, as a whole number of at least 1. gpu: its name."""

    cores: int
    memory_bytes: int
    memory_free_bytes: int
    gpu: str | None


def look() -> Machine:
    """This machine, as far as the process's control group lets it be used."""
    total = usable_memory()
    return Machine(cores=usable_cores(), memory_bytes=total, memory_free_bytes=min(free_memory(), total), gpu=gpu())
