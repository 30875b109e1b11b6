"""Models whose every weight was tuned, told by the file in place of an adapter; each has an engine of its own."""

import hashlib

from smedje.domain.catalog import FULL_WEIGHTS_FILE
from smedje.services.context import Context


def tuned_in_full(ctx: Context, key: str | None) -> bool:
    """Whether the checkpoint under this prefix holds all weights; False for none."""
    return key is not None and ctx.objects.exists(f"{key}/{FULL_WEIGHTS_FILE}")


def engine_name(base_model: str, key: str) -> str:
    """The name of the engine that serves these weights, told apart from the base model's own."""
    return f"{base_model}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
