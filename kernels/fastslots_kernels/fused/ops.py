"""Iterations, step and the step's backward as operators that autograd and torch.compile know.

Operators are opaque to the compiler: nothing of theirs could be fused with what surrounds them. Triton is
imported when one runs, not when it is registered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastslots_kernels.derivatives import first_order
from fastslots_kernels.fused.folded import FoldedWeights, float32_precision, folded_shapes
from fastslots_kernels.fused.plans import stores_normed
from fastslots_kernels.fused.sizes import Sizes
from fastslots_kernels.weights import TENSORS, SlotAttentionWeights

if TYPE_CHECKING:
    from fastslots_kernels.fused.call import Call

# The gradients of all vectors leave the backward as one tensor: outputs of an operator must not share memory.
_MATRICES = tuple(name for name in TENSORS if name.startswith("project") or "_weight_" in name)
_MATRICES += ("mlp_0_weight", "mlp_2_weight")
_NUM_FOLDED = 5  # matrices of `FoldedWeights`
_VECTORS = tuple(name for name in TENSORS if name not in _MATRICES)


@torch.library.custom_op("fastslots::fold", mutates_args=())
def fold(weights: Sequence[Tensor], num_heads: int, tile_dtype: torch.dtype) -> list[Tensor]:
    """The matrices of `FoldedWeights`, of weights in the order of their fields."""
    from fastslots_kernels.fused.products import fold_matrices

    with on_device_of(weights[0]):
        w = SlotAttentionWeights.from_tensors(weights)
        return fold_matrices(w, num_heads, tile_dtype, float32_precision())


@fold.register_fake
def _(weights: Sequence[Tensor], num_heads: int, tile_dtype: torch.dtype) -> list[Tensor]:
    w = SlotAttentionWeights.from_tensors(weights)
    shapes = folded_shapes(w, num_heads)
    return [weights[0].new_empty(shape, dtype=tile_dtype) for shape in shapes]


@torch.library.custom_op("fastslots::iterate", mutates_args=())
def iterate(
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    folded: Sequence[Tensor],
    num_heads: int,
    num_iterations: int,
    tolerance: float | None,
    epsilon: float,
    norm_eps: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """At least one iteration without a graph: `forward.run_iterations`; no ``x̃`` is an empty one."""
    from fastslots_kernels.fused.forward import run_iterations

    with on_device_of(inputs):
        call = _call(inputs, slots, mask, folded, num_heads, epsilon, norm_eps)
        state, used, normed = run_iterations(call, slots, num_iterations, tolerance)
    return state, used, inputs.new_empty(0) if normed is None else normed


@iterate.register_fake
def _(
    inputs: Tensor, slots: Tensor, mask: Tensor | None, folded: Sequence[Tensor], *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    w = FoldedWeights(*folded)
    state = slots.new_empty(slots.shape, dtype=w.scale.dtype)
    used = torch.empty((), dtype=torch.int64, device=inputs.device)
    if stores_normed(w.key_weight.dtype, inputs.dtype):
        return state, used, inputs.new_empty(inputs.shape, dtype=w.key_weight.dtype)
    return state, used, inputs.new_empty(0)


@torch.library.custom_op("fastslots::step", mutates_args=())
def step(
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    normed: Tensor | None,
    weights: Sequence[Tensor],
    folded: Sequence[Tensor],
    num_heads: int,
    epsilon: float,
    norm_eps: Sequence[float],
    attn_dtype: torch.dtype | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One tracked step: new slots, attention, and for the backward sums and gates; empty if not wanted.

    `weights` receive the gradient; the kernels read `folded`, made of them. `normed` is that of `iterate`
    on the same inputs, or None.
    """
    from fastslots_kernels.fused.forward import run_step

    with on_device_of(inputs):
        call = _call(inputs, slots, mask, folded, num_heads, epsilon, norm_eps)
        new, attn, *kept = run_step(call, slots, normed, attn_dtype)
    attn = slots.new_empty(0) if attn is None else attn
    sums, gates = kept if keep else (new.new_empty(0), new.new_empty(0))
    return new, attn, sums, gates


@step.register_fake
def _(
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    normed: Tensor | None,
    weights: Sequence[Tensor],
    folded: Sequence[Tensor],
    num_heads: int,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, attn_dtype, keep = options
    sizes = _sizes(inputs, slots, folded, num_heads)
    batch, n, k = sizes.batch, sizes.num_inputs, sizes.num_slots
    dtype = FoldedWeights(*folded).scale.dtype
    attn = slots.new_empty(0 if attn_dtype is None else (batch, n, k), dtype=attn_dtype)
    sums = slots.new_empty((batch, 1, sizes.sums_size) if keep else (0,), dtype=dtype)
    gates = slots.new_empty((4, sizes.rows, sizes.slot_size) if keep else (0,), dtype=dtype)
    return slots.new_empty(slots.shape, dtype=dtype), attn, sums, gates


@torch.library.custom_op("fastslots::step_backward", mutates_args=())
def step_backward(
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    weights: Sequence[Tensor],
    folded: Sequence[Tensor],
    sums: Tensor | None,
    gates: Tensor | None,
    d_new: Tensor | None,
    d_attn: Tensor | None,
    tile_dtype: torch.dtype,
    num_heads: int,
    epsilon: float,
    norm_eps: Sequence[float],
    need_inputs: bool,
) -> list[Tensor]:
    """Gradients of the inputs (empty if not needed), of the slots, of each matrix, of all vectors in one.

    `folded` are the matrices of `FoldedWeights`, or none: they are made again.
    """
    from fastslots_kernels.fused.backward import run_backward
    from fastslots_kernels.fused.products import fold_matrices

    with on_device_of(inputs):
        w = SlotAttentionWeights.from_tensors(weights, _three(norm_eps))
        if not folded:
            folded = fold_matrices(w, num_heads, tile_dtype, float32_precision())
        folded = FoldedWeights.of(folded, w)
        call = _call(inputs, slots, mask, folded, num_heads, epsilon, norm_eps)
        d_inputs, d_slots, by_name, vectors = run_backward(
            call, w, slots, sums, gates, d_new, d_attn, need_inputs=need_inputs
        )
    matrices = [by_name[name] for name in _MATRICES]
    return [inputs.new_empty(0) if d_inputs is None else d_inputs, d_slots, *matrices, vectors]


@step_backward.register_fake
def _(
    inputs: Tensor, slots: Tensor, mask: Tensor | None, weights: Sequence[Tensor], *rest: Any
) -> list[Tensor]:
    *_, need_inputs = rest
    by_name = dict(zip(TENSORS, weights, strict=True))
    d_inputs = torch.empty_like(inputs) if need_inputs else inputs.new_empty(0)
    matrices = [by_name[name].new_empty(by_name[name].shape) for name in _MATRICES]
    total = sum(by_name[name].shape[0] for name in _VECTORS)
    return [d_inputs, slots.new_empty(slots.shape), *matrices, weights[0].new_empty(total)]


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    x, slots, mask, _, weights, folded, num_heads, epsilon, norm_eps, _, keep = inputs
    kept = output[2:] if keep else (None, None)
    matrices = folded[:_NUM_FOLDED]
    # Not nbytes, which compilers cannot trace.
    if 10 * sum(t.numel() * t.element_size() for t in matrices) > x.numel() * x.element_size():
        matrices = []  # they are made again, for memory's sake
    ctx.save_for_backward(x, slots, mask, *kept, *weights, *matrices)
    ctx.options = FoldedWeights(*folded).key_weight.dtype, num_heads, epsilon, norm_eps
    ctx.num_folded = len(folded)
    ctx.set_materialize_grads(False)


@first_order('backend "triton"')
def _backward(ctx: Any, d_new: Tensor | None, d_attn: Tensor | None, *_: Any) -> tuple[Any, ...]:
    x, slots, mask, sums, gates, *weights = ctx.saved_tensors
    weights, folded = weights[: len(TENSORS)], weights[len(TENSORS) :]
    need_inputs = ctx.needs_input_grad[0]
    d_inputs, d_slots, *matrices, vectors = step_backward(
        x, slots, mask, weights, folded, sums, gates, d_new, d_attn, *ctx.options, need_inputs
    )
    by_name = dict(zip(_MATRICES, matrices, strict=True))
    sizes = [
        weight.shape[0] for name, weight in zip(TENSORS, weights, strict=True) if name in _VECTORS
    ]
    by_name |= dict(zip(_VECTORS, vectors.split(sizes), strict=True))
    d_weights = [by_name[name] for name in TENSORS]
    d_inputs = d_inputs if need_inputs else None
    return d_inputs, d_slots, None, None, d_weights, [None] * ctx.num_folded, *([None] * 5)


step.register_autograd(_backward, setup_context=_setup_context)


@contextmanager
def on_device_of(inputs: Tensor) -> Iterator[None]:
    """Triton launches on the present device. A backward may run under autocast."""
    with torch.cuda.device_of(inputs), torch.autocast(inputs.device.type, enabled=False):
        yield


def _sizes(inputs: Tensor, slots: Tensor, folded: Sequence[Tensor], num_heads: int) -> Sizes:
    batch, num_inputs, input_size = inputs.shape
    _, num_slots, slot_size = slots.shape
    mlp_size = FoldedWeights(*folded).mlp_0_bias.shape[0]
    return Sizes(batch, num_inputs, input_size, num_slots, slot_size, num_heads, mlp_size)


def _call(
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    folded: Sequence[Tensor],
    num_heads: int,
    epsilon: float,
    norm_eps: Sequence[float],
) -> Call:
    from fastslots_kernels.fused.attend import mask_dtype
    from fastslots_kernels.fused.call import Call

    sizes = _sizes(inputs, slots, folded, num_heads)
    w = FoldedWeights(*folded)
    mask = None if mask is None else mask.to(mask_dtype(w.key_weight.dtype))
    return Call(inputs, mask, w, sizes, epsilon, _three(norm_eps), float32_precision())


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third
