"""Our engine without HTTP, for benchmarks/serve_cpu.py: what a decode step costs with no, one and many adapters.

python benchmarks/serve_cpu_inside.py '{"base": FOLDER, "adapters": FOLDER, "count": 8, "threads": 2, ...}' prints JSON
(numbers: fp32, or int8 for weights in eight bits):
tokens a second while 16 sequences decode (base, one adapter, all adapters; rounds interleaved) and while one does,
and memory. Prompts are computed before the clock starts.
"""

import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from smedje.domain.conversations import Sampling
from smedje.modeling.transformer import CausalDecoder
from smedje.objects.store import open_objects
from smedje.serving.adapters import AdapterCache
from smedje.serving.engine import GenerationRequest
from smedje.serving.torch_engine import EngineLimits, TorchEngine
from smedje.serving.weights import load_served

LIMITS = EngineLimits(context=1024, token_capacity=32_768)


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    model, numbers = load_served(Path(asked["base"]), asked.get("numbers", "fp32"))
    names = [f"adapter-{number}" for number in range(asked["count"])]
    kinds: dict[str, tuple[int, list[str | None]]] = {
        "alone": (1, [None]),
        "alone_adapter": (1, [names[0]]),
        "base": (16, [None]),
        "one": (16, [names[0]]),
        "adapters": (16, [*names]),
    }
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(asked["rounds"]):
        for kind, (rows, adapters) in kinds.items():
            found[kind] += decode_seconds(engine(model, asked), rows, adapters, asked["tokens"])
    rates = {kind: kinds[kind][0] / statistics.median(seconds) for kind, seconds in found.items()}
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    told = {kind: round(value, 1) for kind, value in rates.items()}
    slower = round(100 * (rates["one"] / rates["adapters"] - 1), 1)
    print(
        json.dumps(
            {"numbers": numbers, **told, "mixed_slower_percent": slower, "memory_mb": int(peak.split()[1]) // 1024}
        )
    )


def engine(model: CausalDecoder, asked: dict[str, Any]) -> TorchEngine:
    """A fresh engine on the model."""
    folder = Path(asked["adapters"])
    return TorchEngine(model, AdapterCache(model, open_objects(folder.as_uri()), folder=folder, capacity=32), LIMITS)


def decode_seconds(subject: TorchEngine, rows: int, adapters: list[str | None], tokens: int) -> list[float]:
    """Seconds of each step in which all sequences decode."""
    draw = random.Random(1)
    for number in range(rows):
        prompt = tuple(draw.choices(range(100, 40_000), k=64))
        adapter = adapters[number % len(adapters)]
        greedy = Sampling(temperature=0.0)
        subject.add(number, GenerationRequest(tokens=prompt, sampling=greedy, max_tokens=tokens + 16, adapter=adapter))
    found: list[float] = []
    started = set[int]()
    while len(found) < tokens:
        began = time.perf_counter()
        deliveries = subject.step()
        if len(started) == rows:
            found.append(time.perf_counter() - began)
        started |= {delivery.request_id for delivery in deliveries}
    return found


if __name__ == "__main__":
    main()
