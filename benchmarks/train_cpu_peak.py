"""The machine's measured product rate, the yardstick beside every training figure."""

import statistics
import time

import torch

SIZE, ROUNDS = 2048, 9
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def gflops(precision: str) -> float:
    """Products of two 2,048-square matrices through oneDNN with all threads, in GFLOP/s: the median of nine."""
    numbers = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(TYPES[precision])
    product = torch.ops.mkldnn._linear_pointwise
    product(numbers, numbers, None, "none", [], "")
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        product(numbers, numbers, None, "none", [], "")
        seconds.append(time.perf_counter() - began)
    return 2 * SIZE**3 / statistics.median(seconds) / 1e9
