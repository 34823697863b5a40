"""Launchers of `product_kernels`: weights folded, their gradients, and the fold's backward."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.fused.call import Call
from fastslots_kernels.fused.folded import FoldedWeights, folded_shapes
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.product_kernels import (
    _fold_backward_kernel,
    _fold_kernel,
    _weight_gradients_kernel,
)
from fastslots_kernels.fused.sizes import ceil_div
from fastslots_kernels.fused.update_backward import UpdateGradients
from fastslots_kernels.weights import SlotAttentionWeights

_BLOCK_COPY = 2048
_BLOCK_VECTOR = 64


class Blocks(NamedTuple):
    """Tiles of a product, and how much of its sums is done at a time."""

    p: int
    q: int
    chunk: int
    stages: int  # of such parts on their way at a time
    warps: int

    def tiles(self, p: int, q: int, heads: int = 1) -> int:
        """Tiles of a product of ``p`` rows and ``q`` columns for every head."""
        return heads * ceil_div(p, self.p) * ceil_div(q, self.q)

    def constants(self) -> dict[str, int]:
        """As kernels take them."""
        return {
            "BLOCK_P": self.p,
            "BLOCK_Q": self.q,
            "CHUNK": self.chunk,
            "STAGES": self.stages,
            "num_warps": self.warps,
        }


def fold(
    w: SlotAttentionWeights, num_heads: int, dtype: torch.dtype, precision: str = "ieee"
) -> FoldedWeights:
    """Weights of any dtype as the kernels read them; arguments as of `fold_matrices`."""
    return FoldedWeights.of(fold_matrices(w, num_heads, dtype, precision), w)


def fold_matrices(
    w: SlotAttentionWeights, num_heads: int, dtype: torch.dtype, precision: str
) -> list[Tensor]:
    """The matrices of `FoldedWeights`.

    Args:
        w: Weights.
        num_heads: H.
        dtype: Of the tiles.
        precision: Of products of float32, ``"ieee"`` or ``"tf32"``.
    """
    c, d, m = w.input_size, w.slot_size, w.mlp_0_bias.shape[0]
    blocks = product_blocks(dtype)
    matrices = [w.project_q.new_empty(s, dtype=dtype) for s in folded_shapes(w, num_heads)]
    programs = {
        "KEYS": blocks.tiles(d, c, num_heads),
        "VALUES": blocks.tiles(3 * d, c, num_heads),
        "HIDDEN": ceil_div(3 * d * d, _BLOCK_COPY),
        "MLP_0": ceil_div(m * d, _BLOCK_COPY),
        "MLP_2": ceil_div(m * d, _BLOCK_COPY),
    }
    launch(
        _fold_kernel,
        (sum(programs.values()),),
        *(
            matrix.contiguous()
            for matrix in (*_projections(w), w.gru_weight_hh, w.mlp_0_weight, w.mlp_2_weight)
        ),
        *matrices,
        C=c,
        D=d,
        H=num_heads,
        M=m,
        SCALE=_scale(d, num_heads),
        DOUBLE=dtype == torch.float64,
        **_ends(programs),
        PRECISION=_weight_precision(dtype, precision),
        BLOCK_COPY=_BLOCK_COPY,
        **blocks.constants(),
    )
    return matrices


def fold_backward(
    w: SlotAttentionWeights,
    num_heads: int,
    d_key_weight: Tensor,
    d_value_weight: Tensor,
    dtype: torch.dtype,
    precision: str,
) -> dict[str, Tensor]:
    """Gradients of the projections and of ``gru_weight_ih``, by name, in the weights' dtype.

    Args:
        w: Weights that were folded.
        num_heads: H.
        d_key_weight: ``[D, H C]``, accumulator's dtype.
        d_value_weight: ``[3 D, H C]``, accumulator's dtype.
        dtype: Of the tiles.
        precision: As in `fold`.
    """
    c, d, size = w.input_size, w.slot_size, w.slot_size // num_heads
    blocks = product_blocks(dtype)
    gradients = {
        name: torch.empty_like(getattr(w, name), memory_format=torch.contiguous_format)
        for name in ("project_q", "project_k", "project_v", "gru_weight_ih")
    }
    programs = {
        "V": blocks.tiles(size, c, num_heads),
        "Q": blocks.tiles(size, d, num_heads),
        "K": blocks.tiles(size, c, num_heads),
        "IH": blocks.tiles(3 * d, size, num_heads),
    }
    launch(
        _fold_backward_kernel,
        (sum(programs.values()),),
        *(matrix.contiguous() for matrix in _projections(w)),
        d_key_weight,
        d_value_weight,
        *gradients.values(),
        C=c,
        D=d,
        H=num_heads,
        SCALE=_scale(d, num_heads),
        **_ends(programs),
        PRECISION=_weight_precision(dtype, precision),
        **blocks.constants(),
    )
    return gradients


class WeightGradients(NamedTuple):
    """Of the folded matrices in the accumulator's dtype, of all else in the weights'."""

    key_weight: Tensor  # dG, [D, H C]
    value_weight: Tensor  # dW′, [3 D, H C]
    gru_weight_hh: Tensor  # [3 D, D]
    mlp_0_weight: Tensor  # [M, D]
    mlp_2_weight: Tensor  # [D, M]
    vectors: Tensor  # of all vectors, in the order of the fields of `SlotAttentionWeights`


def weight_gradients(
    call: Call, update: UpdateGradients, d_plain: Tensor, vectors: Tensor, dtype: torch.dtype
) -> WeightGradients:
    """The matrices' gradients from their factors, and sums of the vectors' over tiles and heads.

    Args:
        call: As in the forward.
        update: Of `update_backward`.
        d_plain: Of `keys_backward`.
        vectors: Filled by both.
        dtype: Of the weights.
    """
    sizes = call.sizes
    c, d, m, width = sizes.input_size, sizes.slot_size, sizes.mlp_size, sizes.width
    blocks = rows_blocks(call.tile)
    num_vectors = vectors.shape[1] - 2 * (width - c)
    outputs = WeightGradients(
        vectors.new_empty(d, width),
        vectors.new_empty(3 * d, width),
        *(
            vectors.new_empty(shape, dtype=dtype)
            for shape in ((3 * d, d), (m, d), (d, m), (num_vectors,))
        ),
    )
    programs = {
        "HIDDEN": blocks.tiles(3 * d, d),
        "KEYS": blocks.tiles(d, width),
        "VALUES": blocks.tiles(3 * d, width),
        "MLP_0": blocks.tiles(m, d),
        "MLP_2": blocks.tiles(d, m),
        "VECTORS": ceil_div(num_vectors, _BLOCK_VECTOR),
    }
    launch(
        _weight_gradients_kernel,
        (sum(programs.values()),),
        update.normed_slots,
        d_plain,
        update.d_input_gates,
        update.averaged,
        update.d_hidden_gates,
        update.slots,
        update.d_hidden,
        update.normed,
        update.d_new,
        update.hidden,
        vectors,
        *outputs,
        sizes.rows,
        vectors.shape[0],
        C=c,
        D=d,
        H=sizes.num_heads,
        M=m,
        VECTORS=vectors.shape[1],
        **_ends(programs),
        PRECISION=call.precision,
        BLOCK_VECTOR=_BLOCK_VECTOR,
        **blocks.constants(),
    )
    return outputs


def product_blocks(dtype: torch.dtype) -> Blocks:
    """Of products of weights, by the tile dtype: they have the accumulator's themselves."""
    if dtype.itemsize == 2:
        # Few warps, since each of them splits what it reads.
        return Blocks(32, 16, 32, 3, 2)
    return Blocks(32, 32, 16, 1, 4) if dtype == torch.float64 else Blocks(32, 32, 32, 3, 4)


def rows_blocks(dtype: torch.dtype) -> Blocks:
    """Of products that sum over rows of slots, in the tile dtype."""
    return Blocks(64, 64, 64, 6, 4) if dtype.itemsize == 2 else product_blocks(dtype)


def _weight_precision(dtype: torch.dtype, precision: str) -> str:
    """Of products of weights in float32, by the tile dtype and the precision of float32 tiles.

    For 16-bit tiles the matrix units make them too, at an error of float32 still, far below what rounding to
    the tiles adds: without these units the products would take longer than those of all tiles.
    """
    return "tf32x3" if dtype.itemsize == 2 else precision


def _projections(w: SlotAttentionWeights) -> tuple[Tensor, ...]:
    return w.project_q, w.project_k, w.project_v, w.gru_weight_ih


def _scale(slot_size: int, num_heads: int) -> float:
    return 1 / math.sqrt(slot_size // num_heads)


def _ends(programs: dict[str, int]) -> dict[str, Any]:
    """Where the programs of each kind end, but for those of the last."""
    ends = accumulate(programs.values())
    return {f"END_{name}": end for name, end in list(zip(programs, ends, strict=True))[:-1]}
