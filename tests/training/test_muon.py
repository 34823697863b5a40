"""Muon on a CPU with and without instructions for bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastslots.training.muon import Muon, orthogonalised

SHAPES = ((6, 4), (4, 6), (5, 5), (1, 7))
RATE = 0.02


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def step(optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
    optimizer.step()


@pytest.mark.parametrize(("precision", "differ"), [("bf16", 0.0), ("float32", 0.1)])
def test_steps_are_pytorchs_up_to_the_rounding_of_bfloat16(
    monkeypatch: pytest.MonkeyPatch, precision: str, differ: float
) -> None:
    monkeypatch.setattr("fastslots.training.muon.fast_precision", lambda: precision)
    ours, theirs = parameters(), parameters()
    optimizers = (
        Muon([{"params": ours, "lr": RATE}]),
        torch.optim.Muon(theirs, RATE, weight_decay=0),
    )
    for seed in range(4):
        for optimizer in optimizers:
            step(optimizer, seed)
    for before, one, other in zip(parameters(), ours, theirs, strict=True):
        moved = (other - before).norm()
        assert moved > RATE
        assert (one - other).norm() <= differ * moved
        states = [optimizer.state for optimizer in optimizers]
        sums = [state[p]["momentum_buffer"] for state, p in zip(states, (one, other), strict=True)]
        assert torch.equal(*sums)


def test_without_bfloat16_nothing_is_multiplied_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastslots.training.muon.fast_precision", lambda: "float32")
    monkeypatch.setattr(torch.Tensor, "bfloat16", None)
    for dtype in (torch.float32, torch.float64):
        found = parameters(dtype)
        step(Muon([{"params": found, "lr": RATE}]), 0)
        assert not any(map(torch.equal, found, parameters(dtype)))


def test_parameters_without_a_gradient_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastslots.training.muon.fast_precision", lambda: "float32")
    first, second = parameters()[:2]
    optimizer = Muon([{"params": [first, second], "lr": RATE}])
    first.grad = torch.ones_like(first)
    optimizer.step()
    assert torch.equal(second, parameters()[1])
    assert not torch.equal(first, parameters()[0])
    assert optimizer.step(lambda: 3.0) == 3.0


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalised(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() <= values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ found @ v.T  # these values alone: X and M have the same vectors
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-4


def test_a_gradient_of_zeros_changes_nothing() -> None:
    assert not orthogonalised(torch.zeros(3, 4), (3.4445, -4.7750, 2.0315), 5, 1e-7).any()
