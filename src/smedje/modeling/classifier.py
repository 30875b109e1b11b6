"""A classifier's head beside its adapter: score.weight [K, H] in safetensors, K label names in JSON.

Logits of the K labels are the head times the hidden state of a prompt's last token. Knows the two files; refuses to
know adapters, prompts and losses.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from smedje.domain.catalog import HEAD_FILE, LABELS_FILE
from smedje.errors import InvalidRequest

WEIGHT = "score.weight"


def head_files(head: Tensor, labels: Sequence[str]) -> dict[str, bytes]:
    """The two files' contents by name: head [K, H], labels in the order of its rows."""
    assert len(labels) == len(head), "every row has a label"
    return {
        HEAD_FILE: save_safetensors({WEIGHT: head.detach().to("cpu", torch.float32).contiguous()}),
        LABELS_FILE: (json.dumps({"labels": list(labels)}, indent=2, ensure_ascii=False) + "\n").encode(),
    }


def load_head(folder: Path) -> tuple[Tensor, tuple[str, ...]] | None:
    """The head [K, H] in fp32 and its labels; None for a folder without one. Raises InvalidRequest for broken files."""
    if not (folder / LABELS_FILE).exists():
        return None
    try:
        labels = tuple(str(name) for name in json.loads((folder / LABELS_FILE).read_bytes())["labels"])
        head = load_safetensors((folder / HEAD_FILE).read_bytes())[WEIGHT].float()
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InvalidRequest(
            f"The classifier in {folder} cannot be read: {type(error).__name__}.", code="invalid_adapter"
        ) from None
    if head.ndim != 2 or len(head) != len(labels) or not torch.isfinite(head).all():
        raise InvalidRequest(f"The classifier in {folder} does not fit its labels.", code="invalid_adapter")
    return head, labels
