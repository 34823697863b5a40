"""A case's tensors, and the forward and backward of one provider on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastslots.benchmark.cases import DTYPES, Case, Provider
from fastslots.slot_attention import SlotAttention
from fastslots_kernels import SlotAttentionWeights, slot_attention

# Untrained steps amplify rounding, until only luck would be compared: of 160 correct float32 problems none
# breaks the rule below at 3 iterations, 4 do at 7. The loop is the same for all counts.
MOST_ITERATIONS_CHECKED = 3

Outputs = tuple[Tensor, Tensor | None, Tensor]


class IncorrectResultError(RuntimeError):
    """A provider's results are further from the float64 oracle than rounding explains."""


@dataclass(frozen=True)
class Problem:
    """The tensors of a case: leaves that need gradients, and the gradient of the slots."""

    inputs: Tensor
    slots: Tensor
    weights: SlotAttentionWeights
    grad_slots: Tensor
    num_heads: int

    @classmethod
    def make(cls, case: Case, device: torch.device, seed: int = 0) -> Problem:
        """Normal inputs and slots and freshly initialised weights, the same on every device."""
        dtype = DTYPES[case.dtype]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = SlotAttention(
                1,
                case.num_slots,
                case.input_size,
                case.slot_size,
                case.mlp_hidden_size,
                case.num_heads,
            )
            inputs = torch.randn(case.batch, case.num_inputs, case.input_size)
            slots = torch.randn(case.batch, case.num_slots, case.slot_size)
            grad = torch.randn_like(slots)
        weights = SlotAttentionWeights.from_module(module.to(device))
        return cls(
            inputs.to(device), slots.to(device), weights, grad.to(device), case.num_heads
        ).to(dtype)

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers, rounded to the dtype, as new leaves."""
        tensors = [_leaf(tensor, dtype) for tensor in self.weights.named_tensors().values()]
        return Problem(
            _leaf(self.inputs, dtype),
            _leaf(self.slots, dtype),
            SlotAttentionWeights.from_tensors(tensors, self.weights.norm_eps),
            self.grad_slots.to(dtype),
            self.num_heads,
        )

    @property
    def leaves(self) -> list[Tensor]:
        """Inputs, slots and weights."""
        return [self.inputs, self.slots, *self.weights.named_tensors().values()]


class Call:
    """The forward and backward of one provider at one number of iterations.

    Args:
        provider: How to compute.
        problem: On what.
        iterations: T.
    """

    def __init__(self, provider: Provider, problem: Problem, iterations: int) -> None:
        self.provider, self.problem, self.iterations = provider, problem, iterations
        self.device = problem.inputs.device
        self.uses_cuda_graphs = provider.compiled and self.device.type == "cuda"
        self._function: Callable[[], Outputs] = self._slot_attention
        if provider.compiled:
            mode = "reduce-overhead" if self.uses_cuda_graphs else "default"
            self._function = torch.compile(
                self._slot_attention, fullgraph=True, dynamic=False, mode=mode
            )

    def forward(self) -> Outputs:
        """Slots, attention, and the number of iterations."""
        if self.uses_cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._function()

    def backward(self, outputs: Outputs) -> tuple[Tensor | None, ...]:
        """Gradients of inputs, slots and weights for a fixed gradient of the slots."""
        return torch.autograd.grad(
            outputs[0], self.problem.leaves, self.problem.grad_slots, allow_unused=True
        )

    def run(self) -> tuple[Outputs, tuple[Tensor | None, ...]]:
        """Both."""
        outputs = self.forward()
        return outputs, self.backward(outputs)

    def _slot_attention(self) -> Outputs:
        problem = self.problem
        return slot_attention(
            problem.inputs,
            problem.slots,
            problem.weights,
            num_iterations=self.iterations,
            num_heads=problem.num_heads,
            gradient="neumann" if self.provider.gradient == "implicit" else "unrolled",
            backend=self.provider.backend,
        )


def check_call(call: Call) -> None:
    """Compares outputs and gradients with the float64 reference on the same rounded tensors.

    For every tensor, the greatest error may be twice that of the reference in the call's dtype plus
    ``eps * s``; in float64 it may be ``1e-9 * s``. s is the largest entry, of that output, or of all
    gradients (some are zero in exact arithmetic).

    Raises:
        IncorrectResultError: If it is greater.
    """
    usual, dtype = Provider("reference", call.provider.gradient), call.problem.inputs.dtype
    oracle = _results(Call(usual, call.problem.to(torch.float64), call.iterations))
    eager = _results(Call(usual, call.problem, call.iterations))
    actual = _results(call)
    largest_grad = max(oracle[name].abs().max() for name in oracle if name.startswith("gradient"))
    for name, exact in oracle.items():
        scale = largest_grad if name.startswith("gradient") else exact.abs().max()
        if dtype == torch.float64:
            bound = 1e-9 * scale
        else:
            bound = 2 * (eager[name] - exact).abs().max() + torch.finfo(dtype).eps * scale
        error = (actual[name] - exact).abs().max()
        if not error <= bound:
            raise IncorrectResultError(
                f"{call.provider.label} ({call.provider.gradient}, {call.iterations} iterations, "
                f"{dtype}): {name} is off by {error:.3g}; at most {bound:.3g} is rounding. "
                "Nothing was measured"
            )


def _results(call: Call) -> dict[str, Tensor]:
    """Outputs and gradients by name, in float64."""
    (slots, attn, _), grads = call.run()
    names = ("inputs", "slots", *call.problem.weights.named_tensors())
    found = {"slots": slots, "attn": attn}
    found |= {f"gradient of {name}": grad for name, grad in zip(names, grads, strict=True)}
    return {name: t.detach().double() for name, t in found.items() if t is not None}


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype, copy=True).requires_grad_()
