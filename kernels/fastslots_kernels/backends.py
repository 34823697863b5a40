"""The ways to compute one step, by name."""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastslots_kernels.checks import check_choice
from fastslots_kernels.derivatives import is_exporting, refuse_transforms
from fastslots_kernels.fixed_point import Step
from fastslots_kernels.fused import FusedStep, why_not, why_not_here
from fastslots_kernels.layers import why_module_called
from fastslots_kernels.projection_free import ProjectionFreeStep
from fastslots_kernels.reference import PlainLayers, ReferenceStep
from fastslots_kernels.weights import SlotAttentionWeights

_log = logging.getLogger("fastslots_kernels")
BACKENDS = ("auto", "triton", "torch", "reference")


class ResolvedBackend(NamedTuple):
    """A backend's name, never "auto", and why it was chosen."""

    name: str
    reason: str


def resolve_backend(
    backend: str,
    inputs: Tensor | None = None,
    slots: Tensor | None = None,
    weights: SlotAttentionWeights | nn.Module | None = None,
    num_heads: int = 1,
) -> ResolvedBackend:
    """Says which backend a call would use, and why.

    Without tensors it says what this machine can run at all.

    Args:
        backend: ``"auto"``, ``"triton"``, ``"torch"`` or ``"reference"``.
        inputs: Of the call, ``[B, N, C]``; all of inputs, slots and weights, or none.
        slots: Of the call, ``[B, K, D]``.
        weights: Of the call, or the module that holds them.
        num_heads: H.

    Raises:
        ValueError: If ``backend`` is none of these.
        RuntimeError: If a backend asked for by name cannot run here; nothing falls back in silence.
    """
    check_choice("backend", backend, BACKENDS)
    if isinstance(weights, nn.Module):
        why = why_module_called(weights)
        if why is not None:
            return _calling(backend, why)
        weights = SlotAttentionWeights.read(weights)
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


def _calling(backend: str, why: str) -> ResolvedBackend:
    """The backend for a module whose layers must be called."""
    if backend in ("triton", "torch"):
        raise RuntimeError(
            f"backend {backend!r} reads the tensors of a module's layers, but its {why}; use "
            "backend='reference', which calls them, or 'auto'"
        )
    if backend == "auto" and not torch.compiler.is_compiling():
        _say_called(why)
    return ResolvedBackend("reference", f"layers must be called: {why}")


@functools.cache
def _say_called(why: str) -> None:
    _log.warning(
        "slot attention calls the layers of its module, without fused kernels: its %s", why
    )


def make_step(
    backend: str,
    inputs: Tensor,
    slots: Tensor,
    weights: SlotAttentionWeights | nn.Module,
    *,
    num_heads: int,
    epsilon: float,
    mask: Tensor | None,
    unrolled: bool,
) -> Step:
    """Prepares the steps of one call with checked arguments; unrolled ones keep least each.

    A module as `weights` is called.
    """
    name = resolve_backend(backend, inputs, slots, weights, num_heads).name
    if name == "torch" and is_exporting():
        name = "reference"  # a program keeps operations, and not the backward that "torch" has written out
    if isinstance(weights, nn.Module) or name == "reference":
        layers: Any = weights if isinstance(weights, nn.Module) else PlainLayers(weights)
        return ReferenceStep(inputs, layers, num_heads=num_heads, epsilon=epsilon, mask=mask)
    refuse_transforms(f'backend "{name}"', (inputs, slots, *weights.named_tensors().values()))
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
    return ProjectionFreeStep(inputs, weights, num_heads=num_heads, epsilon=epsilon, mask=mask)
