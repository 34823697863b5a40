"""What kernels calculate with a tile."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

from fastslots_kernels.fused.arithmetic import exponential, sigmoid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def functions(x_ptr, exponentials_ptr, sigmoids_ptr, SIZE: tl.constexpr, TILE: tl.constexpr):
    i = tl.arange(0, SIZE)
    x = tl.load(x_ptr + i)
    tl.store(exponentials_ptr + i, exponential(x, TILE))
    tl.store(sigmoids_ptr + i, sigmoid(x, TILE))


def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    exponentials, sigmoids = torch.empty_like(x), torch.empty_like(x)
    functions[(1,)](x, exponentials, sigmoids, SIZE=len(x), TILE=tl.float32)
    return exponentials, sigmoids


@pytest.mark.filterwarnings(
    "ignore:overflow encountered"
)  # NumPy's, where a GPU gives inf in silence
def test_float32_exponentials_are_as_exact_as_float32_allows() -> None:
    x = torch.linspace(-86, 88, 1024, device=DEVICE)
    exponentials, sigmoids = run(x)
    exact = x.double().exp()
    error = ((exponentials.double() - exact) / exact).abs().max()
    assert error <= 3 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(sigmoids, x.double().sigmoid().float(), rtol=5e-7, atol=0)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_exponentials_at_their_ends() -> None:
    x = torch.tensor([-math.inf, -1e30, math.nan, 0.0, 1e30, math.inf, -104.0, 1.0], device=DEVICE)
    exponentials, sigmoids = run(x)
    assert exponentials[[0, 1, 3, 4, 5]].tolist() == [0, 0, 1, math.inf, math.inf]
    assert sigmoids[[0, 1, 3, 4, 5]].tolist() == [0, 0, 0.5, 1, 1]
    assert exponentials[2].isnan()
    assert sigmoids[2].isnan()
