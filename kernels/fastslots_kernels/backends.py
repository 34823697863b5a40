"""The ways to compute one step, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastslots_kernels.checks import check_choice
from fastslots_kernels.derivatives import refuse_transforms
from fastslots_kernels.fused import FusedStep, why_not, why_not_here
from fastslots_kernels.projection_free import ProjectionFreeStep
from fastslots_kernels.reference import ReferenceStep
from fastslots_kernels.weights import SlotAttentionWeights

BACKENDS = ("auto", "triton", "torch", "reference")


class Step(Protocol):
    """Maps slots to the next ones, tracked by autograd if grad mode is on."""

    def __call__(self, slots: Tensor, *, return_attn: bool) -> tuple[Tensor, Tensor | None]:
        """``[B, K, D]`` slots to the next ones, and ``attn`` ``[B, N, K]`` if asked for."""
        ...


class ResolvedBackend(NamedTuple):
    """A backend's name, never "auto", and why it was chosen."""

    name: str
    reason: str


def resolve_backend(
    backend: str,
    inputs: Tensor | None = None,
    slots: Tensor | None = None,
    weights: SlotAttentionWeights | None = None,
    num_heads: int = 1,
) -> ResolvedBackend:
    """Says which backend a call would use, and why.

    Without tensors it says what this machine can run at all.

    Args:
        backend: ``"auto"``, ``"triton"``, ``"torch"`` or ``"reference"``.
        inputs: Of the call, ``[B, N, C]``; all of inputs, slots and weights, or none.
        slots: Of the call, ``[B, K, D]``.
        weights: Of the call.
        num_heads: H.

    Raises:
        ValueError: If ``backend`` is none of these.
        RuntimeError: If a backend asked for by name cannot run here; nothing falls back in silence.
    """
    check_choice("backend", backend, BACKENDS)
    if backend in ("torch", "reference"):
        return ResolvedBackend(backend, "asked for by name")
    reason, on_gpu = why_not_here(), torch.cuda.is_available()
    if inputs is not None and slots is not None and weights is not None:
        reason, on_gpu = why_not(inputs, slots, weights, num_heads), inputs.is_cuda
    if reason is None and backend == "auto" and not on_gpu:
        reason = "on a CPU they are interpreted, which shows results, not speed"
    if reason is None:
        chosen = "asked for by name" if backend == "triton" else "the fused kernels can run"
        return ResolvedBackend("triton", chosen)
    if backend == "triton":
        raise RuntimeError(
            f"backend 'triton' cannot run: {reason}; "
            "use backend='torch' (projection-free, any device) or 'auto'"
        )
    return ResolvedBackend("torch", f"the fused kernels cannot run: {reason}")


def make_step(
    backend: str,
    inputs: Tensor,
    slots: Tensor,
    weights: SlotAttentionWeights,
    *,
    num_heads: int,
    epsilon: float,
    mask: Tensor | None,
    unrolled: bool,
) -> Step:
    """Prepares the steps of one call with checked arguments; unrolled ones keep least each."""
    name = resolve_backend(backend, inputs, slots, weights, num_heads).name
    if name != "reference":
        tensors = (inputs, slots, *weights.named_tensors().values())
        refuse_transforms(f'backend "{name}"', tensors)
    if name == "triton":
        return FusedStep(
            inputs,
            slots,
            weights,
            num_heads=num_heads,
            epsilon=epsilon,
            mask=mask,
            keep=not unrolled,
        )
    make: Callable[..., Step] = ReferenceStep if name == "reference" else ProjectionFreeStep
    return make(inputs, weights, num_heads=num_heads, epsilon=epsilon, mask=mask)
