"""What this machine can train, as it looks from outside. Knows the machine and base models; nothing of a database."""

from pathlib import Path
from typing import Any

from smedje.modeling.catalog import load_catalog
from smedje.modeling.folder import installed_models
from smedje.objects.machine import gpu, usable_cores, usable_memory
from smedje.services.job_request import METHODS

# Every weight must be in memory at least once, in two bytes; nothing can be trained in less.
BYTES_A_PARAMETER = 2


def abilities(home: Path) -> dict[str, Any]:
    """What this machine can train: executor, devices, cores, memory, methods, and each installed or known base model
    with its methods, whether it is installed, the bytes that its default job needs, and why it cannot be trained."""
    memory, known = usable_memory(), load_catalog()
    installed = {found.name for found in installed_models(home)}
    models = []
    for name in sorted(installed | known.keys()):
        model = known.get(name)
        models.append(
            {
                "name": name,
                "installed": name in installed,
                "methods": list(METHODS if model is None else model.methods),
                "memory_bytes": None if model is None else model.memory_training_bytes,
                "reason": None if model is None else too_large(model.parameters, memory=memory),
            }
        )
    card = gpu()
    return {
        "executor": "local",
        "devices": ["cpu", *(["cuda"] if card else [])],
        "gpu": card,
        "cores": usable_cores(),
        "memory_bytes": memory,
        "methods": list(METHODS),
        "models": models,
    }


def too_large(parameters: int, *, memory: int) -> str | None:
    """Why a base model of this size cannot be trained in so many bytes; None where it may be possible."""
    least = parameters * BYTES_A_PARAMETER
    if least <= memory:
        return None
    return f"its weights alone need {least / 1e9:.1f} GB, and there are {memory / 1e9:.1f} GB of memory"
