"""One function for what comes before a frozen product, the product, and its adapter: y = x W^T + b + scale B A x.

Knows what the backward pass can have again for little and so does not keep: the norm's and the gated activation's
result. Product and adapter share one x in the type of the product, which is all that is kept of it: in bf16 rows
between products take half of the memory, and are rounded once where each product would round them anyway.
Refuses to know layers, modules and dropout.

Letters: T rows, H hidden size, I intermediate size.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from smedje.modeling.config import Site
from smedje.modeling.int8 import Int8Weight
from smedje.modeling.low_rank import Factors, factor_gradients, narrow_gradient, narrowed, rows_gradient, widened
from smedje.modeling.products import multiplied

Kept = tuple[Tensor, ...]


@runtime_checkable
class Fusable(Protocol):
    """An adapter that may be computed with the product it belongs to. factors: None where only it itself knows how."""

    def factors(self, site: Site) -> Factors | None: ...


class Entry(Protocol):
    """What rows z go through before a product: forward, and both again and back in the backward pass.

    enter: x, and what is kept of z. back: x once more and the gradient of z from that of x; None of None.
    """

    def enter(self, z: Tensor) -> tuple[Tensor, Kept]: ...

    def back(self, dx: Tensor | None, kept: Kept) -> tuple[Tensor, Tensor | None]: ...


class AsTheyAre(NamedTuple):
    """Rows already in the product's type."""

    def enter(self, z: Tensor) -> tuple[Tensor, Kept]:
        """z itself."""
        return z, (z,)

    def back(self, dx: Tensor | None, kept: Kept) -> tuple[Tensor, Tensor | None]:
        """The gradient itself."""
        return kept[0], dx


class Normed(NamedTuple):
    """fused.rms_norm of z [T, H], given in `dtype`. Keeps z where that is fp32, z / rms(z) otherwise."""

    weight: Tensor
    eps: float
    dtype: torch.dtype

    def enter(self, z: Tensor) -> tuple[Tensor, Kept]:
        """Rounded before the weight as in Llama."""
        wide = z.float()
        scale = torch.rsqrt(torch.linalg.vecdot(wide, wide) / z.shape[-1] + self.eps)[..., None]
        if self.dtype == torch.float32:
            return (wide * scale).mul_(self.weight), (z, scale)
        unit = (wide * scale).to(self.dtype)
        return unit * self.weight.to(self.dtype), (unit, scale)

    def back(self, dx: Tensor | None, kept: Kept) -> tuple[Tensor, Tensor | None]:
        """The gradient is fp32."""
        rows, scale = kept
        if self.dtype == torch.float32:
            x = (rows * scale).mul_(self.weight)
            if dx is None:
                return x, None
            d_unit = dx * self.weight
            along = torch.linalg.vecdot(d_unit, rows)[..., None] * scale.pow(3) / rows.shape[-1]
            return x, d_unit.mul_(scale).addcmul_(rows, along, value=-1)
        x = rows * self.weight.to(self.dtype)
        if dx is None:
            return x, None
        unit, d_unit = rows.float(), dx.float().mul_(self.weight)
        along = torch.linalg.vecdot(d_unit, unit)[..., None] / rows.shape[-1]
        return x, d_unit.addcmul_(unit, along, value=-1).mul_(scale)


class Gated(NamedTuple):
    """fused.swiglu of gate | up [T, 2I] in their own type. Keeps these alone."""

    def enter(self, z: Tensor) -> tuple[Tensor, Kept]:
        """silu(gate) * up."""
        gate, up = z.chunk(2, dim=1)
        return F.silu(gate).mul_(up), (z,)

    def back(self, dx: Tensor | None, kept: Kept) -> tuple[Tensor, Tensor | None]:
        """Both gradients side by side."""
        gate, up = kept[0].chunk(2, dim=1)
        opened = F.silu(gate)
        if dx is None:
            return opened.mul_(up), None
        dz = torch.empty_like(kept[0])
        d_gate, d_up = dz.chunk(2, dim=1)
        torch.mul(opened, dx, out=d_up)
        torch.ops.aten.silu_backward.grad_input(dx.mul_(up), gate, grad_input=d_gate)
        return opened.mul_(up), dz


class Frozen(NamedTuple):
    """A linear that does not change. multiply: the type of the product where the weight is stored in another."""

    weight: Tensor
    bias: Tensor | None
    multiply: torch.dtype


def adapted_linear(z: Tensor, entry: Entry, frozen: Frozen, factors: Factors) -> Tensor:
    """entry(z) W^T + b + scale B A entry(z), in the type of entry(z). Gradients go to z, A and B."""
    assert not frozen.weight.requires_grad, "trained weights have autograd's own linear"
    assert not frozen.weight.is_mkldnn, "packed weights are for inference"
    assert not isinstance(frozen.weight, Int8Weight), "packed weights are for inference"
    factors_of = (factors.scale, factors.spans, *factors.downs, *factors.ups)
    y: Tensor = _Adapted.apply(z, entry, frozen, *factors_of)  # type: ignore[no-untyped-call]
    return y


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, entry: Entry, frozen: Frozen, scale: float, spans: Any, *tensors: Tensor
    ) -> Tensor:
        x, kept = entry.enter(z)
        narrow: Kept = ()
        more = None
        if spans:
            factors = _factors(scale, spans, tensors)
            narrow = (narrowed(x, factors),)
            more = widened(narrow[0], factors, frozen.weight.shape[0])
        y = multiplied(x, frozen.weight, frozen.bias, frozen.multiply, more=more)
        ctx.save_for_backward(*tensors, *narrow, *kept)
        ctx.entry, ctx.frozen, ctx.scale, ctx.spans, ctx.dtype = entry, frozen, scale, spans, z.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, count, saved = grads[0], 2 * len(ctx.spans), ctx.saved_tensors
        weight, multiply = ctx.frozen.weight, ctx.frozen.multiply
        if not ctx.spans:
            dz = ctx.entry.back(multiplied(dy, weight.T, None, multiply), saved)[1]
            return None if dz is None else dz.to(ctx.dtype), None, None, None, None
        factors, narrow, kept = _factors(ctx.scale, ctx.spans, saved[:count]), saved[count], saved[count + 1 :]
        d_narrow = narrow_gradient(dy, factors)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = multiplied(dy, weight.T, None, multiply, more=rows_gradient(d_narrow, factors))
        x, dz = ctx.entry.back(dx, kept)
        d_factors = factor_gradients(dy, d_narrow, x, narrow, factors)
        return None if dz is None else dz.to(ctx.dtype), None, None, None, None, *d_factors


def _factors(scale: float, spans: Any, tensors: Any) -> Factors:
    return Factors(scale, spans, tuple(tensors[: len(spans)]), tuple(tensors[len(spans) :]))
