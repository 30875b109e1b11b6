"""Matrix products with frozen weights, on the fastest exact kernel for the device.

Knows which kernel: fp32 on the CPU goes through oneDNN, whose kernels follow what the processor can do. PyTorch's
default (MKL) takes a slow path on processors not made by Intel: on a Zen 5 core 105 GFLOP/s against oneDNN's 240. Both
are plain fp32; the choice depends on the build alone, never on timing, so that a resumed run repeats every bit.
Also knows mixed numbers: weights stored in bf16 under fp32 rows, multiplied exactly or in bf16; and weights in eight
bits (int8.py). Refuses to know layers and adapters.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smedje.modeling.int8 import Int8Weight

_HAS_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_HAS_BF16 = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
_PACKING_ROWS = 16  # a hint; any count above one gives a layout that serves all counts


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What weights are stored as, what flows between products (rows, norms, biases), and what products multiply.

    bf16 products add up in fp32 and round what they give; rows between them stay bf16 in training (adapted.py). fp32
    products of bf16 weights are those of the same weights stored in fp32, to the last bit.
    """

    weights: torch.dtype
    rows: torch.dtype
    products: torch.dtype


def multiplies_bf16() -> bool:
    """Whether this processor has instructions for bf16 products; without them they take many times as long as fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def plain(dtype: torch.dtype) -> Numbers:
    """One type for everything."""
    return Numbers(weights=dtype, rows=dtype, products=dtype)


BF16_PRODUCTS = Numbers(weights=torch.bfloat16, rows=torch.float32, products=torch.bfloat16)
FP32_OF_BF16 = Numbers(weights=torch.bfloat16, rows=torch.float32, products=torch.float32)


@cache
def threads_spin() -> bool:
    """Whether this process's compute threads, which read the same environment, spin for a while before they sleep.

    Source: libgomp's manual, GOMP_SPINCOUNT and OMP_WAIT_POLICY; the first is the stronger one.
    """
    count = os.environ.get("GOMP_SPINCOUNT", "").strip()
    return count != "0" if count else os.environ.get("OMP_WAIT_POLICY", "").strip().upper() == "ACTIVE"


@contextmanager
def one_core() -> Iterator[None]:
    """Compute in this thread on one core alone: products of some microseconds are over before another one is awake.

    Changes nothing where threads spin, for then the other one is awake.
    """
    threads = torch.get_num_threads()
    if threads == 1 or threads_spin():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias: [T, in], [out, in], [out] -> [T, out]. Without gradients."""
    if isinstance(weight, Int8Weight):
        return weight.times(x, bias)
    half = x.dtype == torch.bfloat16 == weight.dtype and x.device.type == "cpu" and _HAS_BF16
    if weight.is_mkldnn or ((half or _uses_onednn(x)) and _is_dense(x) and _is_dense(weight)):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def product_and(more: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """product(x, weight) + more, [T, out] in bf16, rounded once: a `more` that is smaller than half of the last digit,
    as a young adapter's is, would be lost after a rounding of the product alone. Without gradients.

    Written into `more`: a result elsewhere is as much memory again to go through.
    """
    return more.addmm_(x, weight.T)


def packed(weight: Tensor) -> Tensor:
    """A copy of a weight [out, in] in oneDNN's own layout, for `product` alone; the weight itself where it is no gain.

    The shape, type and device can still be read, the values cannot. Half the time of a plain weight at 2 to 16 rows,
    a quarter less at one, no loss at many.
    """
    half = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and multiplies_bf16()
    if not (half or _uses_onednn(weight)):
        return weight
    with torch.no_grad():
        layout: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKING_ROWS)
    return layout


def frozen_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, multiply: torch.dtype | None = None
) -> Tensor:
    """`product` with the gradient of x. A weight or bias that asks for its own gradient gets it, from autograd.

    multiply: the type in which x and a weight of another type are multiplied; the result has x's type.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return F.linear(x, weight, bias)
    if x.requires_grad and torch.is_grad_enabled():
        assert not weight.is_mkldnn, "packed weights are for inference"
        assert not isinstance(weight, Int8Weight), "packed weights are for inference"
        out: Tensor = _FrozenLinear.apply(x, weight, bias, multiply)  # type: ignore[no-untyped-call]
        return out
    return multiplied(x, weight, bias, multiply)


def multiplied(
    x: Tensor, weight: Tensor, bias: Tensor | None, multiply: torch.dtype | None, *, more: Tensor | None = None
) -> Tensor:
    """`product` of operands of different types, multiplied in the type `multiply`, given in x's; plus `more`, [T, out],
    which may be written to. Without gradients.
    """
    if more is not None:
        if x.dtype == torch.bfloat16 == weight.dtype:
            return product_and(more if bias is None else more + bias.to(more.dtype), x, weight)
        return multiplied(x, weight, bias, multiply).add_(more)
    if (multiply is None or x.dtype == weight.dtype) and (bias is None or bias.dtype == x.dtype):
        return product(x, weight, bias)
    multiply = x.dtype if multiply is None else multiply
    y = product(x.to(multiply), weight.to(multiply)).to(x.dtype)
    return y if bias is None else y.add_(bias)


def _uses_onednn(tensor: Tensor) -> bool:
    return _HAS_ONEDNN and tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _is_dense(matrix: Tensor) -> bool:
    """Rows or columns lie without gaps; with gaps oneDNN falls to a reference kernel, 1000 times slower."""
    return matrix.numel() > 0 and (matrix.is_contiguous() or matrix.T.is_contiguous())


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, multiply: torch.dtype | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.multiply = multiply
        return multiplied(x, weight, bias, multiply)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return multiplied(grads[0], weight.T, None, ctx.multiply), None, None, None
