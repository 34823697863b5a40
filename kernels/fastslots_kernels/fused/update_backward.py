"""The slot update's backward: launchers, and the gradients of all vectors of the weights at once.

Gradients of matrices are left to `products`; both factors of each are returned.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

from torch import Tensor

from fastslots_kernels.fused.folded import FoldedWeights
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.sizes import Sizes, padded
from fastslots_kernels.fused.update import Keys
from fastslots_kernels.fused.update_backward_kernels import (
    _gates_backward_kernel,
    _keys_backward_kernel,
    _update_backward_kernel,
)

_BLOCK_ROWS = 16


class UpdateGradients(NamedTuple):
    """What `update_backward` leaves: sums and slots in the accumulator's dtype, the rest in the tiles'.

    Gradients of the matrices: ``values``: ``d_input_gatesᵀ ū``, ``hidden``: ``d_hidden_gatesᵀ slots``,
    ``mlp_0``: ``d_hiddenᵀ normed``, ``mlp_2``: ``d_newᵀ hidden``.
    """

    d_sums: Tensor  # [B, 1, sums_size], laid out like the sums; its padding is not written
    d_slots: Tensor  # [R, D]: past the gates; `keys_backward` adds the rest
    d_input_gates: Tensor  # [R, 3 D]
    d_hidden_gates: Tensor  # [R, 3 D]
    averaged: Tensor  # [R, H C]: ū
    hidden: Tensor  # [R, M], after the ReLU
    d_hidden: Tensor  # [R, M], before it
    normed: Tensor  # [R, D]: what enters the MLP


class KeyGradients(NamedTuple):
    """Factors of the gradient of ``keys``, ``normedᵀ d_plain``, in the tiles' dtype."""

    d_plain: Tensor  # [R, H C]: of the product with ``keys``
    normed: Tensor  # [R, D]: the normalised slots, affine included


def new_vectors(w: FoldedWeights, sizes: Sizes) -> Tensor:
    """Memory for the gradients of all vectors, one row per tile of slots, ``[tiles, total]``.

    In the order of the fields of `SlotAttentionWeights`, with those of the inputs' LayerNorm for every head.
    The functions below fill all of it between them; `products.weight_gradients` adds it up.
    """
    return w.scale.new_empty(-(-sizes.rows // _BLOCK_ROWS), sum(_widths(sizes).values()))


def update_backward(
    d_new: Tensor,
    slots: Tensor,
    sums: Tensor,
    gates: Tensor,
    w: FoldedWeights,
    sizes: Sizes,
    norm_eps: tuple[float, float, float],
    precision: str,
    vectors: Tensor,
    keys: Keys,
    plain: Tensor,
) -> UpdateGradients:
    """From the gradient of the new slots to those of the sums and, in part, of the old slots.

    Beside that, as it waits for nothing, makes the keys that are differentiated next.

    Args:
        d_new: ``[R, D]``, accumulator's dtype.
        slots: The slots that entered the step, ``[R, D]``, accumulator's dtype.
        sums: ``[B, 1, sums_size]``, accumulator's dtype.
        gates: Of the forward, ``[4, R, D]``.
        w: Weights of the step.
        sizes: Of the call.
        norm_eps: Of the LayerNorms of the inputs, of the slots, before the MLP.
        precision: ``"ieee"`` or ``"tf32"``, for products in float32.
        vectors: Of `new_vectors`; all columns but those of ``norm_slots`` are filled.
        keys: Receives those of the slots, as of `make_keys`.
        plain: As in `make_keys`.
    """
    gradients = _empty_update_gradients(w, sizes)
    if sizes.rows == 0:
        return gradients
    tiles, first = vectors.shape[0], _first_columns(sizes)
    constants = _constants(w, sizes, precision, vectors)
    launch(
        _update_backward_kernel,
        (2 * tiles,),
        d_new,
        slots,
        gates,
        w.mlp_0,
        w.mlp_0_bias,
        w.mlp_2,
        w.norm_mlp_weight,
        w.norm_mlp_bias,
        w.keys,
        w.scale,
        w.shift,
        w.norm_slots_weight,
        w.norm_slots_bias,
        gradients.hidden,
        gradients.d_hidden,
        gradients.normed,
        gradients.d_input_gates,
        gradients.d_hidden_gates,
        gradients.d_slots,
        vectors,
        *keys,
        plain,
        sizes.rows,
        tiles,
        M=sizes.mlp_size,
        FIRST=first["norm_mlp_weight"],
        NORM_SLOTS_EPS=norm_eps[1],
        NORM_MLP_EPS=norm_eps[2],
        BLOCK_D=padded(sizes.slot_size),
        BLOCK_M=_chunk(sizes.mlp_size, sizes.slot_size, w),
        BLOCK_KEYS=_chunk(sizes.input_size, sizes.slot_size, w),
        STAGES=_stages(sizes.slot_size, w),
        **constants,
    )
    columns = max(sizes.input_size, sizes.slot_size)
    launch(
        _gates_backward_kernel,
        (tiles * (sizes.num_heads + 1),),
        gradients.d_input_gates,
        gradients.d_hidden_gates,
        w.values,
        w.hidden,
        sums,
        w.scale,
        w.shift,
        gradients.d_slots,
        gradients.d_sums,
        gradients.averaged,
        vectors,
        sizes.rows,
        sizes.num_slots,
        sizes.sums_size,
        BLOCK_C=padded(sizes.input_size),
        BLOCK_D=padded(sizes.slot_size),
        BLOCK_GATES=_chunk(3 * sizes.slot_size, columns, w, 32 if w.values.itemsize == 2 else 16),
        STAGES=_stages(columns, w),
        **constants,
    )
    return gradients


def no_update_gradients(w: FoldedWeights, sizes: Sizes, vectors: Tensor) -> UpdateGradients:
    """In place of `update_backward` if no gradient reaches the new slots: zeros, also in `vectors`."""
    gradients = _empty_update_gradients(w, sizes)
    vectors.zero_()
    return UpdateGradients(*(gradient.zero_() for gradient in gradients))


def keys_backward(
    d_keys: Tensor,
    plain: Tensor,
    slots: Tensor,
    gradients: UpdateGradients,
    w: FoldedWeights,
    sizes: Sizes,
    norm_slots_eps: float,
    precision: str,
    vectors: Tensor,
) -> KeyGradients:
    """From the gradients of the keys to the rest of that of the old slots, added to ``gradients.d_slots``.

    Args:
        d_keys: Of ``m`` and ``c``, laid out like the sums, ``[B, S, sums_size]``; their sum over S counts.
        plain: Keys without the inputs' affine, ``[R, H C]``, accumulator's dtype.
        slots: As in `update_backward`.
        gradients: Of `update_backward` or `no_update_gradients`.
        w: Weights of the step.
        sizes: Of the call.
        norm_slots_eps: Added to the variance of the slots.
        precision: As in `update_backward`.
        vectors: Filled by `update_backward`; receives the rest.
    """
    d_plain = w.keys.new_empty(sizes.rows, sizes.width)
    normed = w.keys.new_empty(sizes.rows, sizes.slot_size)
    if sizes.rows == 0:
        return KeyGradients(d_plain, normed)
    first, constants = _first_columns(sizes), _constants(w, sizes, precision, vectors)
    launch(
        _keys_backward_kernel,
        (vectors.shape[0],),
        d_keys,
        plain,
        slots,
        w.keys,
        w.scale,
        w.shift,
        w.norm_slots_weight,
        w.norm_slots_bias,
        d_plain,
        normed,
        gradients.d_slots,
        vectors,
        sizes.rows,
        sizes.num_slots,
        sizes.sums_size,
        NUM_SPLITS=d_keys.shape[1],
        FIRST=first["norm_slots_weight"],
        EPS=norm_slots_eps,
        BLOCK_D=padded(sizes.slot_size),
        BLOCK_C=_chunk(sizes.input_size, sizes.slot_size, w),
        STAGES=_stages(sizes.slot_size, w),
        **constants,
    )
    return KeyGradients(d_plain, normed)


def _widths(sizes: Sizes) -> dict[str, int]:
    """Columns of `vectors` by field of `SlotAttentionWeights`, in order."""
    d = sizes.slot_size
    return {
        "norm_inputs_weight": sizes.width,
        "norm_inputs_bias": sizes.width,
        "norm_slots_weight": d,
        "norm_slots_bias": d,
        "norm_mlp_weight": d,
        "norm_mlp_bias": d,
        "gru_bias_ih": 3 * d,
        "gru_bias_hh": 3 * d,
        "mlp_0_bias": sizes.mlp_size,
        "mlp_2_bias": d,
    }


def _first_columns(sizes: Sizes) -> dict[str, int]:
    """First column of every field in `vectors`."""
    widths = _widths(sizes)
    return dict(zip(widths, accumulate(widths.values(), initial=0), strict=False))


def _empty_update_gradients(w: FoldedWeights, sizes: Sizes) -> UpdateGradients:
    rows, d, m = sizes.rows, sizes.slot_size, sizes.mlp_size
    return UpdateGradients(
        w.scale.new_empty(sizes.batch, 1, sizes.sums_size),
        w.scale.new_empty(rows, d),
        *(w.values.new_empty(rows, width) for width in (3 * d, 3 * d, sizes.width, m, m, d)),
    )


def _constants(w: FoldedWeights, sizes: Sizes, precision: str, vectors: Tensor) -> dict[str, Any]:
    """What all kernels take alike."""
    return {
        "C": sizes.input_size,
        "D": sizes.slot_size,
        "H": sizes.num_heads,
        "VECTORS": vectors.shape[1],
        "PRECISION": precision,
        "BLOCK_ROWS": _BLOCK_ROWS,
        "num_warps": 8,
    }


def _stages(columns: int, w: FoldedWeights) -> int:
    """Tiles on their way at a time: shared memory cannot hold more than 16 KiB of two weights three times."""
    return 3 if padded(columns) * w.values.element_size() <= 1024 else 1


def _chunk(size: int, columns: int, w: FoldedWeights, kib: int = 16) -> int:
    """How much of `size` is done at a time: `kib` of a weight with so many columns, 16 to 64 of them."""
    chunk = kib * 1024 // (padded(columns) * w.values.itemsize)
    return min(64, max(16, chunk), padded(size))
