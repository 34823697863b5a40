"""Slot attention as a fixed point: how it is found, and how it is differentiated.

Source: Chang, Griffiths & Levine 2022, "Object Representations as Fixed Points", Figure 2 and Equation 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastslots_kernels.derivatives import transforms_active


class Step:
    """One step of a call, tracked by autograd if grad mode is on, and iterations of it without a graph."""

    stops_on_device = False  # whether `iterate` stops by itself, and nothing waits

    def __call__(self, slots: Tensor, *, return_attn: bool) -> tuple[Tensor, Tensor | None]:
        """``[B, K, D]`` slots to the next ones, and ``attn`` ``[B, N, K]`` if asked for."""
        raise NotImplementedError

    def iterate(
        self, slots: Tensor, num_iterations: int, tolerance: float | None
    ) -> tuple[Tensor, Tensor]:
        """At least one iteration without a graph: the slots, detached, and the iterations used."""
        found, _, used = unroll(self, slots, num_iterations, tolerance, return_attn=False)
        # Without a graph there may be tangents, and a program exported without grad mode may run with it.
        return found.detach(), used


def unroll(
    step: Step, slots: Tensor, num_iterations: int, tolerance: float | None, *, return_attn: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Vanilla slot attention: ``num_iterations >= 1`` steps, tracked if grad mode is on."""
    attn, used = None, num_iterations
    may_not_wait = step.stops_on_device or slots.is_meta or torch.compiler.is_compiling()
    may_not_wait = may_not_wait or transforms_active()
    if tolerance is not None and may_not_wait:
        return _unroll_on_device(step, slots, num_iterations, tolerance, return_attn)
    if step.stops_on_device and not torch.is_grad_enabled() and num_iterations > 1:
        slots, _ = step.iterate(slots, num_iterations - 1, None)
        num_iterations = 1
    for iteration in range(1, num_iterations + 1):
        previous = slots
        # A tolerance may end the loop after any step, so that each might be the one whose attn is returned.
        last = iteration == num_iterations or tolerance is not None
        slots, attn = step(slots, return_attn=return_attn and last)
        if tolerance is not None and bool(_converged(slots, previous, tolerance)):
            used = iteration
            break
    return slots, attn, torch.full((), used, dtype=torch.int64, device=slots.device)


def _unroll_on_device(
    step: Step, slots: Tensor, num_iterations: int, tolerance: float, return_attn: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`unroll` that waits for no device: all steps run, and those after the last one needed are not used."""
    attn: Tensor | None = None
    stop = torch.zeros((), dtype=torch.bool, device=slots.device)
    used = torch.zeros((), dtype=torch.int64, device=slots.device)
    for _ in range(num_iterations):
        new, new_attn = step(slots, return_attn=return_attn)
        used = used + ~stop
        converged = _converged(new, slots, tolerance)
        slots = torch.where(stop, slots, new)
        if new_attn is not None:
            attn = new_attn if attn is None else torch.where(stop, attn, new_attn)
        stop = stop | converged
    return slots, attn, used


@torch.no_grad()
def iterate(
    step: Step, slots: Tensor, num_iterations: int, tolerance: float | None
) -> tuple[Tensor, Tensor]:
    """Looks for the fixed point with at most ``num_iterations`` steps without a graph."""
    slots = slots.detach()
    if num_iterations == 0:
        return slots, torch.zeros((), dtype=torch.int64, device=slots.device)
    return step.iterate(slots, num_iterations, tolerance)


def neumann_step(
    step: Step, fixed_point: Tensor, init: Tensor | None, num_terms: int, *, return_attn: bool
) -> tuple[Tensor, Tensor | None]:
    """One step from ``fixed_point`` whose gradient is the implicit one, truncated.

    With J the step's Jacobian at the fixed point and g the gradient of its output, weights and inputs
    receive ``Σ_{i < num_terms} (Jᵀ)ⁱ g`` through one step: Equation 3. One term is the paper's method.

    Every step of the chain starts from the same value: ``z - z.detach()`` is exactly zero and only
    carries the gradient. That makes all terms Jacobians at the fixed point itself, and lets autograd, or
    torch.compile, do the rest.

    Args:
        step: The slot-attention step.
        fixed_point: Detached slots, ``[B, K, D]``.
        init: The initial slots, which then receive ``Jᵀ`` of that sum (BO-QSA's straight-through
            estimator); None: they receive nothing.
        num_terms: At least 1.
        return_attn: Whether to return the attention.
    """
    start = fixed_point
    if init is not None:
        start = start + (init - init.detach())
    slots, attn = step(start, return_attn=return_attn)
    for _ in range(num_terms - 1):
        # The gradient of attn takes the same path as that of the slots: both leave the last step.
        slots, attn = step(start + (slots - slots.detach()), return_attn=return_attn)
    return slots, attn


@torch.no_grad()
def _converged(slots: Tensor, previous: Tensor, tolerance: float) -> Tensor:
    """Whether every image's relative residual ``‖f(s) - s‖ / ‖f(s)‖`` is below the tolerance."""
    change = torch.linalg.vector_norm((slots - previous).flatten(1), dim=1)
    below: Tensor = change < tolerance * torch.linalg.vector_norm(slots.flatten(1), dim=1)
    return below.all()
