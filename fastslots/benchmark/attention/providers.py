"""Ways to compute a case, which of them can run, and the package `slot-attention` of PyPI."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastslots.benchmark.attention.cases import DTYPES, GRADIENTS, Case, check_names
from fastslots.benchmark.results_file import Skipped
from fastslots_kernels import resolve_backend

# The public code of the papers also makes keys and values once per call: "reference" with gradient
# "unrolled" stands for it.
BACKENDS = ("reference", "torch", "triton")
PACKAGE = "slot-attention"
MODES = (*GRADIENTS, "no-grad")


@dataclass(frozen=True)
class Provider:
    """One way to compute a case.

    Args:
        backend: Of `BACKENDS`, or `PACKAGE`: that of PyPI, with parameters of its own.
        gradient: Of `MODES`. "unrolled": T tracked iterations. "implicit": T iterations without a
            graph, then a tracked one (``gradient="neumann"`` with one term). "no-grad": T iterations
            without a graph and without their attention, no backward.
        compiled: Under torch.compile.
        graphed: Replayed as CUDA graphs.
    """

    backend: str
    gradient: str
    compiled: bool = False
    graphed: bool = False

    @property
    def label(self) -> str:
        """Backend, compiler and graphs: "torch", "reference + compile + graph"."""
        compiled, graphed = " + compile" * self.compiled, " + graph" * self.graphed
        return self.backend + compiled + graphed

    @property
    def has_backward(self) -> bool:
        """Whether there is one."""
        return self.gradient != "no-grad"

    def steps(self, iterations: int) -> int:
        """Steps in all at T iterations: one more where the last one is tracked alone."""
        return iterations + (self.gradient == "implicit")

    def least_bytes(self, case: Case, iterations: int) -> int:
        """What a forward reads if nothing of the inputs' size stays on the chip between steps.

        The inputs in every step, or once, to be normalised, and then in every step the normalised ones
        in the type of the products: whichever is less.
        """
        itemsize = DTYPES[case.dtype].itemsize
        products = case.input_bytes // itemsize * (2 if case.precision == "bf16" else itemsize)
        steps = self.steps(iterations)
        return min(steps * case.input_bytes, case.input_bytes + steps * products)


def why_not(provider: Provider, device: torch.device) -> str | None:
    """Why a provider cannot run on the device, or None if it can."""
    if provider.graphed and device.type != "cuda":
        return f"CUDA graphs need a CUDA device; this one is {device.type!r}"
    try:
        if provider.backend == PACKAGE:
            import_package()
        else:
            resolve_backend(provider.backend)
    except (ImportError, RuntimeError) as error:
        return str(error)
    if provider.backend == "triton" and device.type == "cpu":
        return (
            "backend 'triton' cannot be measured on a CPU: "
            f"TRITON_INTERPRET={os.environ.get('TRITON_INTERPRET', '')} shows results, not speed"
        )
    return None


def sort_out(
    providers: Iterable[Provider], device: torch.device
) -> tuple[list[Provider], list[Skipped]]:
    """The providers that can run on the device, and the others with their reasons, once each."""
    reasons = {provider: why_not(provider, device) for provider in providers}
    skipped = {p.label: Skipped(p.label, reason) for p, reason in reasons.items() if reason}
    return [p for p, reason in reasons.items() if reason is None], list(skipped.values())


def choose_providers(
    device: torch.device,
    backends: Sequence[str] | None = None,
    gradients: Sequence[str] = GRADIENTS,
    compiled: bool = True,
    graphed: bool = True,
) -> tuple[list[Provider], list[Skipped]]:
    """The ways to compute that can run, and those that cannot.

    Args:
        device: Where to run.
        backends: By name. Default: all of `BACKENDS`, those that cannot run being skipped.
        gradients: By name, of `MODES`.
        compiled: Whether to add torch.compile: of the reference, and on CUDA of the projection-free
            form too, both replayed as CUDA graphs there.
        graphed: Whether to add, on CUDA, every backend as CUDA graphs.

    Raises:
        ValueError: If a backend or gradient is unknown or none is given.
        RuntimeError: If a backend asked for by name cannot run, or has no speed to measure there.
    """
    check_names("backend", backends, (*BACKENDS, PACKAGE))
    check_names("gradient", gradients, MODES)
    on_cuda = device.type == "cuda"
    eager = [
        Provider(backend, gradient)
        for backend in backends or BACKENDS
        for gradient in gradients
        if backend != PACKAGE or gradient != "implicit"  # which it does not have
    ]
    providers, skipped = sort_out(eager, device)
    if backends is not None and skipped:
        raise RuntimeError(skipped[0].reason)
    if graphed and on_cuda:
        providers += [
            Provider(p.backend, p.gradient, graphed=True) for p in providers if p.backend != PACKAGE
        ]
    if compiled:
        providers += [
            Provider(backend, gradient, compiled=True, graphed=on_cuda)
            for backend in (("reference", "torch") if on_cuda else ("reference",))
            for gradient in gradients
        ]
    return providers, skipped


def import_package() -> Any:
    """Its module class.

    Raises:
        ImportError: If it, or something it needs, is not installed.
    """
    try:
        return importlib.import_module("slot_attention").SlotAttention
    except ImportError as error:
        raise ImportError(
            f"{PACKAGE} cannot be imported ({error}): pip install {PACKAGE} brings it"
        ) from error


class PackageModel:
    """Its module on some inputs. It draws weights and initial slots of its own, and has no attention.

    Args:
        inputs: ``[B, N, C]``.
        slots: For their shape alone, ``[B, K, D]``.
        mlp_hidden_size: Of the MLP.
        num_heads: Must be 1.
        iterations: T.

    Raises:
        ImportError: If the package is missing.
        ValueError: If it has no model of these sizes.
    """

    def __init__(
        self, inputs: Tensor, slots: Tensor, mlp_hidden_size: int, num_heads: int, iterations: int
    ) -> None:
        width = slots.shape[2]
        if inputs.shape[2] != width or mlp_hidden_size < width or num_heads != 1:
            raise ValueError(
                f"{PACKAGE} needs inputs and slots of one width, an MLP at least as wide, and one head; "
                f"got widths {inputs.shape[2]}, {width} and {mlp_hidden_size}, {num_heads} heads"
            )
        module = import_package()(slots.shape[1], width, iterations, hidden_dim=mlp_hidden_size)
        self.module = module.to(inputs)
        self.inputs = inputs
        self.used = torch.tensor(iterations)

    @property
    def leaves(self) -> list[Tensor]:
        """Inputs and weights."""
        return [self.inputs, *self.module.parameters()]

    def __call__(self) -> tuple[Tensor, None, Tensor]:
        """Slots, no attention, the number of iterations."""
        return self.module(self.inputs), None, self.used
