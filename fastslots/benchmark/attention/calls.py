"""A case's tensors, and the forward and backward of one provider on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastslots.benchmark.attention.cases import DTYPES, Case
from fastslots.benchmark.attention.package import PACKAGE, PackageModel
from fastslots.benchmark.attention.providers import Provider
from fastslots.benchmark.measure.graphs import Graphs, Tensors
from fastslots.benchmark.measure.precision import autocast, products_dtype
from fastslots.slot_attention import SlotAttention
from fastslots_kernels import SlotAttentionWeights, slot_attention
from fastslots_kernels.accuracy import compare, largest

# Untrained steps amplify rounding, until only luck would be compared: of 160 correct float32 problems none
# breaks the rule below at 3 iterations, 4 do at 7. The loop is the same for all counts.
MOST_ITERATIONS_CHECKED = 3

BY_ORACLE, BY_RUNNING = "float64 reference", "runs: shape, finite numbers"


class IncorrectResultError(RuntimeError):
    """A provider's results are further from the float64 oracle than rounding explains."""


class Check(NamedTuple):
    """How a call was checked, and how far its gradients may be trusted."""

    how: str  # `BY_ORACLE` or `BY_RUNNING`
    gradient_error: float | None = (
        None  # the worst, over what rounding explains; None: there is none
    )


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


def check_call(call: Call) -> Check:
    """Compares outputs and gradients with the float64 reference on the same rounded tensors.

    The rule is that of `fastslots_kernels.accuracy.compare`, with the eps of the products. Outputs must keep
    it. Gradients need not, since rounding may switch a hidden unit of the MLP on or off, which no bound
    foresees: their worst error is returned. The package of PyPI has parameters of its own: only that it
    runs is checked.

    Raises:
        IncorrectResultError: If the error of an output is greater, or something is not finite.
    """
    if call.provider.backend == PACKAGE:
        return _check_runs(call)
    usual, problem = Provider("reference", call.provider.gradient), call.problem
    oracle, oracle_grads = _results(Call(usual, problem.to(torch.float64), call.iterations))
    eager, eager_grads = _results(Call(usual, problem, call.iterations))
    actual, grads = _results(call)
    dtype = products_dtype(problem.precision, problem.inputs.dtype)
    for one in compare(actual, eager, oracle, dtype):
        if not one.ok:
            raise IncorrectResultError(
                f"{_description(call)}: {one.name} is off by {one.error:.3g}; "
                f"at most {one.bound:.3g} is rounding"
            )
    scale = largest(*oracle_grads.values())
    of_grads = compare(grads, eager_grads, oracle_grads, dtype, scale=scale)
    for one in of_grads:
        if not math.isfinite(one.error):
            raise IncorrectResultError(f"{_description(call)}: {one.name} is not finite")
    return Check(BY_ORACLE, max((one.share for one in of_grads), default=None))


def _check_runs(call: Call) -> Check:
    outputs, grads = _results(call)
    wrong = [name for name, tensor in (outputs | grads).items() if not tensor.isfinite().all()]
    if wrong or outputs["slots"].shape != call.problem.slots.shape:
        raise IncorrectResultError(
            f"{_description(call)}: slots have shape {list(outputs['slots'].shape)}, not finite are {wrong}"
        )
    return Check(BY_RUNNING)


def _results(call: Call) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients by name, in float64."""
    (slots, attn, _), grads = call.run()
    names: list[str] = ["inputs", "slots", *call.problem.weights.named_tensors()]
    if call.provider.backend == PACKAGE:
        names = [str(index) for index in range(len(grads))]
    by_name = {f"gradient of {name}": grad for name, grad in zip(names, grads, strict=False)}
    return _in_float64({"slots": slots, "attn": attn}), _in_float64(by_name)


def _in_float64(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: t.detach().double() for name, t in tensors.items() if t is not None}


def _description(call: Call) -> str:
    precision = "" if call.problem.precision == "ieee" else f", {call.problem.precision}"
    return (
        f"{call.provider.label} ({call.provider.gradient}, {call.iterations} iterations, "
        f"{call.problem.inputs.dtype}{precision})"
    )


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype, copy=True).requires_grad_()
