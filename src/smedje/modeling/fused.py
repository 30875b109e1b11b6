"""Norm, rotation and gated activation with gradients written by hand: fewer passes over memory than autograd's.

Knows the mathematics of each and what its backward pass needs; saves inputs, never results that can be had again.
Without gradients the plain expressions run. Refuses to know layers, adapters and attention.

Letters: T rows, H hidden size, N heads of q, k and v together, D values a head, R rotated values, I intermediate size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, [T, H]; in fp32 and rounded before the weight, as in Llama."""
    if x.dtype != torch.float32:
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    if torch.is_grad_enabled() and x.requires_grad and not weight.requires_grad:
        normed: Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return normed
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of gate | up side by side: [T, 2I] -> [T, I] (Shazeer 2020, arXiv:2002.05202)."""
    if torch.is_grad_enabled() and gate_up.requires_grad:
        gated: Tensor = _SwiGlu.apply(gate_up)  # type: ignore[no-untyped-call]
        return gated
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up


def turn_heads(qkv: Tensor, cos: Tensor, sin: Tensor, sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [T, heads, D] of q | k | v side by side [T, N * D], with q and k turned by cos, sin [T, 1, R / 2].

    Turned in the type of cos and sin, given in that of qkv. sizes: query heads, key heads, D. Values i and i + R / 2 of
    a head form a pair; those from R on stay as they are.
    """
    if torch.is_grad_enabled() and qkv.requires_grad:
        turned: tuple[Tensor, Tensor, Tensor] = _TurnHeads.apply(qkv, cos, sin, sizes)  # type: ignore[no-untyped-call]
        return turned
    return _turned(qkv, cos, sin, sizes)


def _turned(qkv: Tensor, cos: Tensor, sin: Tensor, sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    many, few, size = sizes
    heads = qkv.view(qkv.shape[0], many + 2 * few, size)
    q, k, v = torch.split(heads, [many, few, few], dim=1)
    if qkv.dtype == cos.dtype:
        return _rotated(q, cos, sin), _rotated(k, cos, sin), v.contiguous()
    q, k = (_rotated(part.to(cos.dtype), cos, sin).to(qkv.dtype) for part in (q, k))
    return q, k, v.contiguous()


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn [T, heads, D] by cos, sin into a new tensor or into `out`."""
    half = cos.shape[-1]
    out = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device) if out is None else out
    first, second = heads[..., :half], heads[..., half : 2 * half]
    torch.mul(first, cos, out=out[..., :half])
    out[..., :half].addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half : 2 * half])
    out[..., half : 2 * half].addcmul_(first, sin)
    if 2 * half < heads.shape[-1]:
        out[..., 2 * half :] = heads[..., 2 * half :]
    return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(torch.linalg.vecdot(x, x) / x.shape[-1] + eps)[..., None]
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        dx = grads[0] * weight
        along = torch.linalg.vecdot(dx, x)[..., None] * scale.pow(3) / x.shape[-1]
        return dx.mul_(scale).addcmul_(x, along, value=-1), None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=1)
        d_gate_up = torch.empty_like(gate_up)
        d_gate, d_up = d_gate_up.chunk(2, dim=1)
        torch.mul(F.silu(gate), grads[0], out=d_up)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=d_gate)
        return d_gate_up


class _TurnHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, sizes: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.sizes = sizes
        q, k, v = _turned(qkv, cos, sin, sizes)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        many, few, size = ctx.sizes
        d_q, d_k, d_v = grads
        rows = d_q.shape[0]
        d_heads = torch.empty(rows, many + 2 * few, size, dtype=d_q.dtype, device=d_q.device)
        back = -sin  # turning back is turning by the opposite angle
        for d_part, place in ((d_q, d_heads[:, :many]), (d_k, d_heads[:, many : many + few])):
            if d_part.dtype == cos.dtype:
                _rotated(d_part, cos, back, place)
            else:
                place.copy_(_rotated(d_part.to(cos.dtype), cos, back))
        d_heads[:, many + few :] = d_v
        return d_heads.view(rows, -1), None, None, None
