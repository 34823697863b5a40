"""The ways to compute one step, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

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


def resolve_backend(backend: str) -> ResolvedBackend:
    """Says which backend a call would use, and why.

    Args:
        backend: ``"auto"``, ``"triton"``, ``"torch"`` or ``"reference"``.

    Raises:
        ValueError: If ``backend`` is none of these.
        RuntimeError: If a backend asked for by name cannot run here; nothing falls back in silence.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}; got {backend!r}")
    if backend == "triton":
        raise RuntimeError(
            "backend 'triton' cannot run: this version of fastslots has no fused kernels yet; "
            "use backend='torch' (projection-free, any device) or 'auto'"
        )
    if backend == "auto":
        return ResolvedBackend("torch", "this version has no fused kernels; 'torch' runs anywhere")
    return ResolvedBackend(backend, "asked for by name")


def make_step(
    backend: str,
    inputs: Tensor,
    weights: SlotAttentionWeights,
    *,
    num_heads: int,
    epsilon: float,
    mask: Tensor | None,
) -> Step:
    """Prepares the steps of one call with checked arguments."""
    name = resolve_backend(backend).name
    make: Callable[..., Step] = ReferenceStep if name == "reference" else ProjectionFreeStep
    return make(inputs, weights, num_heads=num_heads, epsilon=epsilon, mask=mask)
