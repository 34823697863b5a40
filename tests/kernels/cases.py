"""Inputs, a module with Figure 2's names, and the error budget of the kernel tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastslots_kernels import SlotAttentionWeights, slot_attention
from fastslots_kernels.accuracy import compare, largest


class FigureTwo(nn.Module):
    """The modules of the paper's Figure 2 and nothing else; every parameter is random."""

    def __init__(self, c: int, d: int, m: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm_inputs = nn.LayerNorm(c)
        self.norm_slots = nn.LayerNorm(d)
        self.norm_mlp = nn.LayerNorm(d)
        self.project_q = nn.Linear(d, d, bias=False)
        self.project_k = nn.Linear(c, d, bias=False)
        self.project_v = nn.Linear(c, d, bias=False)
        self.gru = nn.GRUCell(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, m), nn.ReLU(), nn.Linear(m, d))
        for name, parameter in self.named_parameters():
            # Of usual size: logits of unusual size would amplify rounding.
            scale = min(0.3, parameter.shape[-1] ** -0.5)
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.data.copy_(noise + (1 if "norm" in name and "weight" in name else 0))


@dataclass(frozen=True)
class Case:
    """Sizes and options of one comparison; `options` go to `slot_attention`."""

    b: int = 2
    n: int = 13
    c: int = 10
    d: int = 8
    k: int = 3
    m: int = 6
    masked: bool = False
    mean: float = 0.5
    options: dict[str, Any] = field(default_factory=dict)


SLATE = Case(b=4, n=256, c=192, d=192, k=6, m=192, options={"num_iterations": 2})
WIDE = Case(b=2, n=300, c=256, d=256, k=24, m=1024, options={"num_iterations": 1})
CLEVR = Case(b=2, n=1000, c=64, d=64, k=11, m=128)
RAGGED = Case(b=32, n=101, c=40, d=24, k=5, m=56, masked=True, options={"num_heads": 3})
# The cases of which rounding is judged, on a GPU and as a GPU would round. With few slots the largest error,
# the eager reference's and the kernels', is a matter of luck: hence the many images of narrow cases.
CASES = [
    pytest.param(SLATE, id="slate"),
    pytest.param(WIDE, id="wide"),
    pytest.param(CLEVR, id="clevr"),
    pytest.param(RAGGED, id="ragged"),
    pytest.param(Case(b=16, n=200, c=64, d=64, k=7, m=64, mean=30.0), id="large-mean"),
    pytest.param(Case(b=16, n=200, c=64, d=64, k=7, m=64, mean=100.0), id="larger-mean"),
    pytest.param(
        Case(b=8, n=64, c=32, d=32, k=4, m=32, options={"gradient": "unrolled"}), id="unrolled"
    ),
]
# Heads times slots, and the width of inputs and slots, at the limits of the kernels.
LIMITS = [(1, 16), (17, 100), (64, 256), (32, 512), (16, 512)]


@dataclass
class Problem:
    """Inputs, weights and output gradients of a case, in one dtype."""

    inputs: Tensor
    slots: Tensor
    mask: Tensor | None
    module: nn.Module
    d_slots: Tensor
    d_attn: Tensor
    options: dict[str, Any]

    def to(self, dtype: torch.dtype) -> Problem:
        module = FigureTwo(
            self.inputs.shape[2],
            self.slots.shape[2],
            len(self.module.mlp[0].bias),
            torch.Generator(),
        )
        module.load_state_dict(self.module.state_dict())
        return Problem(
            self.inputs.to(dtype),
            self.slots.to(dtype),
            self.mask,
            module.to(dtype),
            self.d_slots.to(dtype),
            self.d_attn.to(dtype),
            self.options,
        )


def make_problem(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> Problem:
    """The problem of a case, drawn in float32 and rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs, slots = case.mean + normal(case.b, case.n, case.c), normal(case.b, case.k, case.d)
    mask = None
    if case.masked:
        mask = torch.rand(case.b, case.n, generator=generator) > 0.3
        mask[0, 0] = True
        inputs = inputs.masked_fill(~mask[..., None], float("nan"))
    module = FigureTwo(case.c, case.d, case.m, generator)
    return Problem(
        inputs,
        slots,
        mask,
        module,
        normal(case.b, case.k, case.d),
        normal(case.b, case.n, case.k),
        case.options,
    ).to(dtype)


def steady(problem: Problem) -> Problem:
    """Hidden units of the MLP are on or off: none that rounding switches, which no bound foresees."""
    bias = problem.module.mlp[0].bias
    bias.data[::2], bias.data[1::2] = 4.0, -4.0
    return problem


def run(problem: Problem, backend: str, **options: Any) -> dict[str, Tensor]:
    """Outputs and all gradients, by name, for the gradients of `problem` on both outputs."""
    inputs = problem.inputs.clone().requires_grad_()
    slots = problem.slots.clone().requires_grad_()
    problem.module.zero_grad()
    new, attn, _ = slot_attention(
        inputs,
        slots,
        SlotAttentionWeights.from_module(problem.module),
        mask=problem.mask,
        backend=backend,
        **{"num_iterations": 3, **problem.options, **options},
    )
    assert attn is not None
    torch.autograd.backward(
        [new, attn], [problem.d_slots.to(new.dtype), problem.d_attn.to(attn.dtype)]
    )
    grads = {"d_inputs": inputs.grad, "d_slots": slots.grad}
    grads |= {f"d_{name}": p.grad for name, p in problem.module.named_parameters()}
    zero = torch.zeros((), dtype=problem.inputs.dtype, device=problem.inputs.device)
    return {"slots": new.detach(), "attn": attn.detach()} | {
        name: zero if grad is None else grad.clone() for name, grad in grads.items()
    }


def assert_equal_in_float64(actual: dict[str, Tensor], oracle: dict[str, Tensor]) -> None:
    """Every entry within 1e-9 of the largest."""
    assert_within_budget(actual, oracle, oracle, torch.float64)


def assert_within_budget(
    actual: dict[str, Tensor],
    eager: dict[str, Tensor],
    oracle: dict[str, Tensor],
    dtype: torch.dtype,
    most: float = 1.0,
) -> None:
    """Largest error at most twice the eager reference's, plus one rounding of the largest entry.

    The largest entry of an output is its own; gradients share that of all of them. `most` is the share of
    that bound that may be used.
    """
    gradients = {name: value for name, value in oracle.items() if name.startswith("d_")}
    outputs = {name: value for name, value in oracle.items() if name not in gradients}
    assert gradients
    assert outputs
    scale = largest(*gradients.values())
    for wanted, shared in ((outputs, None), (gradients, scale)):
        for row in compare(actual, eager, wanted, dtype, scale=shared):
            assert row.ok, str(row)
            assert row.share <= most, str(row)
