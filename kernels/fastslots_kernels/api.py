"""The public function: check, prepare, iterate, differentiate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastslots_kernels.autocast import autocast_dtype
from fastslots_kernels.backends import make_step
from fastslots_kernels.checks import (
    check_choice,
    check_count,
    check_is,
    check_multiple,
    check_number,
    check_tensor,
)
from fastslots_kernels.fixed_point import iterate, neumann_step, unroll
from fastslots_kernels.layers import why_module_called
from fastslots_kernels.weights import SlotAttentionWeights

GRADIENTS = ("unrolled", "neumann")
INIT_GRADIENTS = ("none", "straight-through")
MOST_EPSILON = 1e30  # times any number of inputs it is a float32
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def slot_attention(
    inputs: Tensor,
    slots: Tensor,
    weights: SlotAttentionWeights | nn.Module,
    *,
    num_iterations: int,
    num_heads: int = 1,
    epsilon: float = 1e-8,
    mask: Tensor | None = None,
    gradient: str = "neumann",
    neumann_terms: int = 1,
    init_gradient: str = "none",
    tolerance: float | None = None,
    return_attn: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Refines slots by slot attention, differentiated as a fixed point or through all iterations.

    With ``gradient="neumann"``, `num_iterations` steps run without a graph and one more, tracked, starts
    from their detached result (Figure 2: ``num_iterations + 1`` steps in all). With ``"unrolled"`` there
    are `num_iterations` tracked steps. Memory kept for the backward is that of one step in the first case.

    Args:
        inputs: Raw inputs, ``[B, N, C]``; float16, bfloat16, float32 or float64.
        slots: The initial guess, ``[B, K, D]``, dtype and device of ``inputs``. (Under autocast either
            may be float32 while the other has autocast's dtype.)
        weights: Of one step; dtype and device of ``slots``. Or a module with the names of Figure 2, as
            `SlotAttentionWeights.from_module` reads it: if one of its layers has hooks or computes something
            else (an adapter, another activation), its layers are called, in the form of ``"reference"``.
        num_iterations: At least 1 if unrolled, else at least 0.
        num_heads: H, which divides D. The softmax runs over heads and slots together.
        epsilon: Added to the softmax before it is divided by its sum over inputs (dimensionless).
        mask: True where an input is valid, ``[B, N]`` bool. Default: all are. A masked input may hold
            anything, NaN included: its attention and its gradient are exactly 0.
        gradient: ``"neumann"`` or ``"unrolled"``.
        neumann_terms: k in ``Σ_{i<k} (Jᵀ)ⁱ g``, all at the same fixed point; 1 is the paper's method.
        init_gradient: ``"straight-through"`` passes the tracked step's gradient on to ``slots``
            (BO-QSA); with ``"none"`` they get none from an implicit gradient.
        tolerance: Stop before `num_iterations` once every image's relative residual
            ``‖f(s) - s‖ / ‖f(s)‖`` is below it. The fused kernels decide that on the device; the other
            backends wait for it once per iteration.
        return_attn: Whether to return the attention.
        backend: ``"auto"``, ``"triton"``, ``"torch"`` or ``"reference"``. The fused kernels need an NVIDIA
            GPU with 160 KiB of shared memory per block (or, interpreted, ``TRITON_INTERPRET=1`` and CPU
            tensors), H K ≤ 64, C ≤ 512, D ≤ 512 (float64: 256), and at most 32 KiB for H K, rounded up to
            a power of two, times C. ``"auto"`` takes them for CUDA tensors within these limits, else
            ``"torch"``; `resolve_backend` says which and why.

    Returns:
        The slots, ``[B, K, D]``; the attention ``[B, N, K]`` of the last step or None: the softmax, summed
        over heads, before epsilon and before the division by its sum over inputs; and the number of
        iterations used, an int64 scalar (the tracked step after them not counted).

    Raises:
        ValueError: If an argument breaks a rule above, naming it, the rule and the value.
        TypeError: If an argument has the wrong type.
        RuntimeError: If a backend asked for by name cannot run here.

    Source:
        Locatello et al. 2020, Algorithm 1; Chang et al. 2022, Figure 2 and Equation 3.
    """
    if isinstance(weights, nn.Module) and why_module_called(weights) is None:
        weights = SlotAttentionWeights.read(weights)
    _check_tensors(inputs, slots, mask)
    if isinstance(weights, nn.Module):
        _check_widths(weights, inputs, slots)
    else:
        _check_weights(weights, inputs, slots)
    num_heads = check_count("num_heads", num_heads, 1)
    check_multiple("the width of slots", slots.shape[2], "num_heads", num_heads)
    options = check_options(
        num_iterations, gradient, neumann_terms, init_gradient, tolerance, epsilon
    )

    step = make_step(
        backend,
        inputs,
        slots,
        weights,
        num_heads=num_heads,
        epsilon=options.epsilon,
        mask=mask,
        unrolled=gradient == "unrolled",
    )
    steps, tolerance = options.num_iterations, options.tolerance
    if gradient == "unrolled":
        new, attn, used = unroll(step, slots, steps, tolerance, return_attn=return_attn)
    else:
        found, used = iterate(step, slots, steps, tolerance)
        init = slots if init_gradient == "straight-through" else None
        terms = options.neumann_terms
        new, attn = neumann_step(step, found, init, terms, return_attn=return_attn)
    return new.to(slots.dtype), attn, used


class Options(NamedTuple):
    """The numbers among the options of `slot_attention`, checked."""

    num_iterations: int
    neumann_terms: int
    tolerance: float | None
    epsilon: float


def check_options(
    num_iterations: int,
    gradient: str,
    neumann_terms: int,
    init_gradient: str,
    tolerance: float | None,
    epsilon: float,
) -> Options:
    """Raises ValueError or TypeError if options of `slot_attention` break its rules."""
    check_choice("gradient", gradient, GRADIENTS)
    check_choice("init_gradient", init_gradient, INIT_GRADIENTS)
    least = 1 if gradient == "unrolled" else 0
    if tolerance is not None:
        tolerance = check_number("tolerance", tolerance, above=0, finite=False)
    return Options(
        check_count("num_iterations", num_iterations, least, f" with gradient={gradient!r}"),
        check_count("neumann_terms", neumann_terms, 1),
        tolerance,
        check_number("epsilon", epsilon, least=0, below=MOST_EPSILON),
    )


def _check_tensors(inputs: Tensor, slots: Tensor, mask: Tensor | None) -> None:
    for name, tensor, letters in (("inputs", inputs, "B, N, C"), ("slots", slots, "B, K, D")):
        check_tensor(name, tensor)
        if tensor.ndim != 3:
            raise ValueError(f"{name} must have shape [{letters}]; got {list(tensor.shape)}")
        if tensor.dtype not in _DTYPES:
            raise TypeError(
                f"{name} must be float16, bfloat16, float32 or float64; got {tensor.dtype}"
            )
    if slots.shape[0] != inputs.shape[0]:
        raise ValueError(
            f"slots must have the batch size of inputs, {inputs.shape[0]}; got {slots.shape[0]}"
        )
    if slots.shape[1] < 1:
        raise ValueError("slots must hold at least one slot; got 0")
    _check_match("slots", slots, "inputs", inputs)
    if mask is None:
        return
    check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor; got {mask.dtype}")
    if mask.shape != inputs.shape[:2]:
        raise ValueError(f"mask must have shape {list(inputs.shape[:2])}; got {list(mask.shape)}")
    if mask.device != inputs.device:
        raise ValueError(
            f"mask must be on the device of inputs, {inputs.device}; got {mask.device}"
        )


def _check_widths(module: nn.Module, inputs: Tensor, slots: Tensor) -> None:
    """Raises if tensors have not the widths that a module, whose layers are called, says it has."""
    for name, tensor, size in (("inputs", inputs, "input_size"), ("slots", slots, "slot_size")):
        width = getattr(module, size, tensor.shape[2])
        if tensor.shape[2] != width:
            raise ValueError(f"{name} must have width {width}, the {size}; got {tensor.shape[2]}")


def _check_weights(weights: SlotAttentionWeights, inputs: Tensor, slots: Tensor) -> None:
    check_is("weights", weights, SlotAttentionWeights)
    weights.check()
    if inputs.shape[2] != weights.input_size:
        raise ValueError(
            f"inputs must have width {weights.input_size}, that of the weights; got {inputs.shape[2]}"
        )
    if slots.shape[2] != weights.slot_size:
        raise ValueError(
            f"slots must have width {weights.slot_size}, that of the weights; got {slots.shape[2]}"
        )
    _check_match("weights", weights.project_q, "slots", slots)


def _check_match(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}; got {tensor.device}"
        )
    mixed = {tensor.dtype, other.dtype}
    cast = autocast_dtype(tensor.device)
    if len(mixed) == 1 or (cast is not None and mixed <= {torch.float32, cast}):
        return
    raise ValueError(
        f"{name} must have the dtype of {other_name}, {other.dtype}; got {tensor.dtype}"
    )
