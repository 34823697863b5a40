"""A case's tensors, and the forward and backward of one provider on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastslots.benchmark.attention.cases import DTYPES, Case
from fastslots.benchmark.attention.providers import PACKAGE, PackageModel, Provider
from fastslots.benchmark.measure.graphs import Graphs, Tensors
from fastslots.benchmark.measure.precision import autocast
from fastslots.benchmark.measure.timing import Stopwatch, flush_l2
from fastslots.slot_attention import SlotAttention
from fastslots_kernels import SlotAttentionWeights, slot_attention


class Times(NamedTuple):
    """Of one call, in ms."""

    forward_ms: float
    backward_ms: float

    @property
    def both_ms(self) -> float:
        """Forward and backward."""
        return self.forward_ms + self.backward_ms


@dataclass(frozen=True)
class Problem:
    """The tensors of a case: leaves that need gradients, and the gradient of the slots."""

    inputs: Tensor
    slots: Tensor
    weights: SlotAttentionWeights
    grad_slots: Tensor
    num_heads: int
    precision: str = "ieee"

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
        tensors = inputs.to(device), slots.to(device), weights, grad.to(device)
        return cls(*tensors, case.num_heads, case.precision).to(dtype)

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers, rounded to the dtype, as new leaves; products in the precision of float32."""
        tensors = [_leaf(tensor, dtype) for tensor in self.weights.named_tensors().values()]
        return Problem(
            _leaf(self.inputs, dtype),
            _leaf(self.slots, dtype),
            SlotAttentionWeights.from_tensors(tensors, self.weights.norm_eps),
            self.grad_slots.to(dtype),
            self.num_heads,
            self.precision if dtype == torch.float32 else "ieee",
        )

    @property
    def leaves(self) -> list[Tensor]:
        """Inputs, slots and weights."""
        return [self.inputs, self.slots, *self.weights.named_tensors().values()]


class Call:
    """The forward and backward of one provider at one number of iterations.

    Args:
        provider: How to compute. If `graphed`, that is done from `capture` on.
        problem: On what.
        iterations: T.

    Raises:
        ValueError: If the provider has no model of these sizes.
    """

    def __init__(self, provider: Provider, problem: Problem, iterations: int) -> None:
        self.provider, self.problem, self.iterations = provider, problem, iterations
        self.device = problem.inputs.device
        self.leaves = problem.leaves
        self.graphs: Graphs | None = None
        self._function: Callable[[], Tensors] = self._slot_attention
        if provider.backend == PACKAGE:
            mlp_size = problem.weights.mlp_0_bias.shape[0]
            self._function = model = PackageModel(
                problem.inputs, problem.slots, mlp_size, problem.num_heads, iterations
            )
            self.leaves = model.leaves
        if provider.compiled:
            self._function = torch.compile(self._function, fullgraph=True, dynamic=False)

    def capture(self, pool: Any) -> None:
        """Captures CUDA graphs in a pool of memory; forward and backward replay them from then on.

        Raises:
            RuntimeError: If that cannot be done.
        """
        self.graphs = Graphs(
            self.compute,
            self.differentiate if self.provider.has_backward else None,
            pool,
            self.device,
        )

    def forward(self) -> Tensors:
        """Slots, attention, and the number of iterations."""
        return self.compute() if self.graphs is None else self.graphs.forward()

    def backward(self, outputs: Tensors) -> Tensors:
        """Gradients of the leaves for a fixed gradient of the slots; empty for "no-grad"."""
        if not self.provider.has_backward:
            return ()
        return self.differentiate(outputs) if self.graphs is None else self.graphs.backward()

    def run(self) -> tuple[Tensors, Tensors]:
        """Both."""
        outputs = self.forward()
        return outputs, self.backward(outputs)

    def times(self) -> Times:
        """Times both, with a cold L2 cache."""
        flush_l2(self.device)
        watch = Stopwatch(self.device)
        outputs = self.forward()
        watch.mark()
        grads = self.backward(outputs)
        watch.mark()
        times = Times(*watch.laps_ms())
        del grads
        return times

    def compute(self) -> Tensors:
        """The forward, never as a graph."""
        with (
            torch.set_grad_enabled(self.provider.has_backward),
            autocast(self.problem.precision, self.device),
        ):
            return self._function()

    def differentiate(self, outputs: Tensors) -> Tensors:
        """The backward, never as a graph."""
        slots: Any = outputs[0]
        grad = self.problem.grad_slots.to(slots.dtype)
        return torch.autograd.grad(slots, self.leaves, grad, allow_unused=True)

    def _slot_attention(self) -> Tensors:
        problem = self.problem
        return slot_attention(
            problem.inputs,
            problem.slots,
            problem.weights,
            num_iterations=self.iterations,
            num_heads=problem.num_heads,
            gradient="neumann" if self.provider.gradient == "implicit" else "unrolled",
            return_attn=self.provider.has_backward,
            backend=self.provider.backend,
        )


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype, copy=True).requires_grad_()
