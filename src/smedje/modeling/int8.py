"""Frozen weights in eight bits, for inference on a CPU: a quarter of the memory to read for a token.

Knows one scale for each output row of a weight, rows of x as two digits of eight bits, and the kernel (FBGEMM) that
adds up their products in whole numbers. Refuses to know layers, adapters, and whether a model stands it (the serving
engine measures that).
"""

import warnings
from typing import Any

import torch
from torch import Tensor

_WEIGHT_LEVELS = 127
# Without VNNI the kernel adds two products in 16 bits, which hold them when one factor has seven bits.
_LEVELS, _NARROW_LEVELS = 127, 63
_TINY = 1e-30
_ZERO, _ONE = torch.zeros(()), torch.ones(())
# Digits as floats, their unit, what stands for zero, a packed weight -> fp32.
_multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32


def why_no_int8() -> str | None:
    """Why this build and processor cannot multiply eight-bit weights, or None where they can."""
    if torch.backends.quantized.engine not in ("x86", "fbgemm"):
        return "this build of PyTorch has no FBGEMM, which multiplies them on x86-64 processors"
    return None


class Int8Weight(Tensor):
    """A weight [out, in] of whole numbers to 127 and one scale a row, for products alone.

    Shape, type (that of its products) and device can be read, the values cannot: any other use is an error.
    """

    _packed: Any
    _levels: int

    @staticmethod
    def of(weight: Tensor) -> "Int8Weight":
        """The nearest eight-bit weight: each row's largest magnitude becomes 127."""
        made: Int8Weight = Tensor._make_wrapper_subclass(
            Int8Weight, weight.shape, dtype=torch.float32, device=weight.device
        )
        made._packed = _packed(weight.detach().float())
        made._levels = _LEVELS if torch.cpu._is_vnni_supported() else _NARROW_LEVELS
        return made

    def times(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x weight^T + bias: [T, in] -> [T, out]. A row's result does not depend on the other rows.

        Each row is divided by its largest magnitude and written as two digits, the second for what the first leaves:
        about 15 bits. The digits are rows of one product, so that the weight is read once.
        """
        rows, levels = x.shape[0], self._levels
        peak = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True).clamp_min_(_TINY)
        # A number as an operand costs a tensor of its own, a microsecond each time; as a factor it is free.
        rest = torch.addcdiv(_ZERO, x, peak, value=levels)
        first = rest.round()
        digits = torch.cat((first, torch.addcmul(_ZERO, rest.sub_(first), _ONE, value=2 * levels)))
        both = _multiply(digits, 1.0, levels + 1, self._packed)
        y = torch.addcmul(_ZERO, both[:rows].add_(both[rows:], alpha=1 / (2 * levels)), peak, value=1 / levels)
        return y if bias is None else y.add_(bias)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Every operator of PyTorch on it."""
        raise TypeError(f"eight-bit weights are for products alone, found {func}")


def _packed(weight: Tensor) -> Any:
    scales = (weight.abs().amax(1) / _WEIGHT_LEVELS).clamp_min(_TINY)
    whole = (weight / scales[:, None]).round_().to(torch.int8)
    zeros = torch.zeros(len(scales), dtype=torch.long)
    with warnings.catch_warnings():
        # That such tensors will go; the release that we are held to has them.
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
        quantised = torch._make_per_channel_quantized_tensor(whole, scales.double(), zeros, 0)
    return torch.ops.quantized.linear_prepack(quantised, None)
