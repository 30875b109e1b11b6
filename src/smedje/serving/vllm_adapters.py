"""Adapters in a vLLM server, loaded when a request first names them. Knows which are loaded and used; no tensors.

vLLM keeps the weights and reads them again from their folder when it has dropped them; here it is bounded how many it
may know. An adapter is known to it by its prefix in object storage, whose content never changes.
"""

import asyncio
import json
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import httpx2

from smedje.domain.catalog import LABELS_FILE
from smedje.errors import InvalidRequest, NotFound
from smedje.objects.local_files import lent_folder
from smedje.objects.store import Objects
from smedje.serving.vllm_wire import read_event

# No object-storage prefix looks like this.
NEUTRAL = "-"


def write_neutral(folder: Path, *, inputs: int, outputs: int) -> Path:
    """An adapter in PEFT's format that changes nothing: zeros of rank 1 on the first layer's attention output.

    vLLM's kernels for CPUs (lora/ops/torch_ops, 0.32) look the adapter of each row up by its place and give a row that
    has none the place -1, which is the last one: a base model's row then computes with whatever adapter lies there. So
    on a CPU every row must have an adapter. inputs, outputs: sizes of that linear.
    """
    if folder.exists():
        return folder
    shapes = {"lora_A": (1, inputs), "lora_B": (outputs, 1)}
    header, offset = {}, 0
    for part, (rows, columns) in shapes.items():
        end = offset + 4 * rows * columns
        entry = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [offset, end]}
        header[f"base_model.model.model.layers.0.self_attn.o_proj.{part}.weight"] = entry
        offset = end
    text = json.dumps(header).encode()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["o_proj"], "layers_to_transform": [0]}
    # It appears in one go: engines of models of one size may start together.
    with lent_folder(folder.parent, prefix="new-neutral-") as made:
        half = made / "half"
        half.mkdir()
        (half / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(offset))
        (half / "adapter_config.json").write_text(json.dumps(config))
        with suppress(OSError):
            half.rename(folder)
    return folder


class VllmAdapters:
    """At most `capacity` adapters, least recently used out first; one in use always stays, even above the capacity.

    All methods belong to one event loop. objects: where adapters are. folder: where those from a bucket are copied to.
    neutral: folder of the adapter that NEUTRAL stands for.
    """

    def __init__(
        self, http: httpx2.AsyncClient, objects: Objects, *, folder: Path, capacity: int, neutral: Path | None
    ) -> None:
        self._http = http
        self._objects = objects
        self._folder = folder
        self._neutral = neutral
        self._capacity = capacity
        self._lock = asyncio.Lock()
        self._pins: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pins.keys() - {NEUTRAL})

    async def acquire(self, key: str) -> None:
        """Load the adapter under prefix `key` unless it is loaded, and keep it until `release`.

        Raises NotFound when storage has no such adapter, InvalidRequest when vLLM cannot serve it.
        """
        async with self._lock:
            if key not in self._pins:
                await self._load(key)
                self._pins[key] = 0
            self._pins[key] += 1
            self._pins.move_to_end(key)
            unused = [other for other, pins in self._pins.items() if pins == 0]
            for other in unused[: max(0, len(self._pins) - self._capacity)]:
                await self._http.post("/v1/unload_lora_adapter", json={"lora_name": other})
                del self._pins[other]

    def release(self, key: str) -> None:
        """End one use of an acquired adapter. It stays loaded while there is room."""
        self._pins[key] -= 1

    async def _load(self, key: str) -> None:
        if key == NEUTRAL and self._neutral is not None:
            folder = self._neutral
        else:
            folder = await self._fetch(key)
        answer = await self._http.post("/v1/load_lora_adapter", json={"lora_name": key, "lora_path": str(folder)})
        if answer.status_code != 200:
            failure = read_event(answer.content).error
            raise InvalidRequest(
                f"vLLM cannot serve the adapter {key}: {failure.message[:400] if failure else answer.status_code}",
                code="invalid_adapter",
                param="model",
            )

    async def _fetch(self, key: str) -> Path:
        try:
            folder = await asyncio.to_thread(self._objects.local_folder, key, self._folder)
        except NotFound as missing:
            raise NotFound(f"There is no adapter {key}.", code="adapter_not_found", param="model") from missing
        if (folder / LABELS_FILE).exists():
            raise InvalidRequest(
                f"{key} is a classifier, and vLLM serves none beside a chat model. Serve it with SMEDJE_ENGINE=torch.",
                code="invalid_adapter",
                param="model",
            )
        return folder
