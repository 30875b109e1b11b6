"""Products with frozen weights: every layout of the operands is exact, repeatable, and differentiable in x."""

import os
import subprocess
import sys
from itertools import product as combinations

import pytest
import torch
from torch import Tensor

from smedje.modeling.products import frozen_linear, multiplies_bf16, one_core, packed, product


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def matrix(rows: int, columns: int, *, layout: str, seed: int) -> Tensor:
    """A random matrix whose memory is row-major, column-major, or row-major with gaps between rows."""
    generator = torch.Generator().manual_seed(seed)
    if layout == "columns":
        return torch.randn(columns, rows, generator=generator).T
    if layout == "gaps":
        return torch.randn(rows, columns + 5, generator=generator)[:, 2 : columns + 2]
    return torch.randn(rows, columns, generator=generator)


@pytest.mark.parametrize("rows", [0, 1, 2, 33])
def test_every_layout_gives_the_same_product(rows: int) -> None:
    """However x and the weight lie in memory, the result is x W' + b to fp32 rounding."""
    bias = matrix(1, 40, layout="rows", seed=2)[0]
    for x_layout, w_layout in combinations(("rows", "columns", "gaps"), repeat=2):
        x, weight = matrix(rows, 24, layout=x_layout, seed=0), matrix(40, 24, layout=w_layout, seed=1)
        wanted = x.double() @ weight.double().T
        assert torch.allclose(product(x, weight).double(), wanted, atol=1e-5), (x_layout, w_layout)
        assert torch.allclose(product(x, weight, bias).double(), wanted + bias, atol=1e-5), (x_layout, w_layout)


def test_repeated_products_are_bit_identical() -> None:
    """The same operands give the same bits each time: exact resume rests on it."""
    x, weight = matrix(300, 96, layout="rows", seed=3), matrix(200, 96, layout="rows", seed=4)
    first = product(x, weight)
    assert all(torch.equal(product(x.clone(), weight.clone()), first) for _ in range(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_x_is_exact_and_the_weight_gets_none(dtype: torch.dtype) -> None:
    """A frozen weight passes gradients through to x alone."""
    x = matrix(7, 24, layout="rows", seed=5).to(dtype).requires_grad_()
    weight, bias = matrix(40, 24, layout="rows", seed=6).to(dtype), matrix(1, 40, layout="rows", seed=7)[0].to(dtype)
    upstream = matrix(7, 40, layout="rows", seed=8).to(dtype)
    (grad,) = torch.autograd.grad((frozen_linear(x, weight, bias) * upstream).sum(), (x,))
    wanted = upstream.double() @ weight.double()
    assert float((grad.double() - wanted).norm() / wanted.norm()) <= (1e-6 if dtype == torch.float32 else 1e-2)


def test_a_weight_that_asks_for_its_gradient_gets_it() -> None:
    """Where weights are trained, autograd's own linear is used."""
    x, weight = matrix(7, 24, layout="rows", seed=9), matrix(40, 24, layout="rows", seed=10).requires_grad_()
    frozen_linear(x, weight).sum().backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, x.sum(0).expand(40, 24), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 16, 100])
def test_a_packed_weight_gives_the_same_product_and_still_tells_its_shape(rows: int) -> None:
    """Packing changes where the values lie; shape, type and device can be read as before."""
    x, weight = matrix(rows, 72, layout="rows", seed=11), matrix(130, 72, layout="rows", seed=12)
    bias = matrix(1, 130, layout="rows", seed=13)[0]
    small = packed(weight)
    assert (small.shape, small.dtype, small.device) == (weight.shape, weight.dtype, weight.device)
    assert torch.allclose(product(x, small, bias), product(x, weight, bias), atol=1e-5)
    if multiplies_bf16():
        half = packed(weight.bfloat16())
        assert (half.shape, half.dtype) == (weight.shape, torch.bfloat16)
        assert torch.equal(product(x.bfloat16(), half), product(x.bfloat16(), weight.bfloat16()))
    wide = weight.double()
    assert packed(wide) is wide


@pytest.mark.parametrize("threads", [1, 2])
def test_one_core_is_given_back(threads: int) -> None:
    """Within, this thread computes on one core; afterwards on as many as before."""
    torch.set_num_threads(threads)
    try:
        with one_core():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("said", "threads"),
    [
        ({"OMP_WAIT_POLICY": "PASSIVE"}, 1),
        ({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}, 1),
        ({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}, 2),
        ({"OMP_WAIT_POLICY": "active"}, 2),
    ],
)
def test_short_products_use_all_cores_where_threads_spin(said: dict[str, str], threads: int) -> None:
    """One core is for threads that sleep, which is said in the environment that a process starts with."""
    program = "import torch; from smedje.modeling.products import one_core as one\n"
    program += "torch.set_num_threads(2)\nwith one(): print(torch.get_num_threads())"
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", program], env=env | said, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(threads)]
