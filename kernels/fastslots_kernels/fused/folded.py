"""The weights of a step as the kernels read them: products folded, matrices in the tile dtype."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.weights import SlotAttentionWeights


class FoldedWeights(NamedTuple):
    """Weights of a step, products of two weights made. All contiguous.

    Matrices have the tile dtype, ``keys_bias`` and vectors the accumulator's: float32 (float64 for float64).
    With s̃ the normalised slots (affine included): ``m = s̃ keys``, ``c = s̃ keys_bias``; the input gates of the
    GRU are ``ū valuesᵀ + gru_bias_ih`` with ``ū = U / Z ∘ scale + shift``, 0 where Z is 0.
    """

    keys: Tensor  # [D, H C]: Wq_hᵀ Wk_h / √(D / H) ∘ γ, heads side by side
    values: Tensor  # [3 D, H C]: W_ih Wv, heads side by side
    hidden: Tensor  # [3 D, D]: W_hh
    mlp_0: Tensor  # [M, D]
    mlp_2: Tensor  # [D, M]
    keys_bias: Tensor  # [D, H]: Wq_hᵀ Wk_h / √(D / H) β
    scale: Tensor  # [C]: γ of the inputs' LayerNorm
    shift: Tensor  # [C]: β
    norm_slots_weight: Tensor  # [D]
    norm_slots_bias: Tensor  # [D]
    norm_mlp_weight: Tensor  # [D]
    norm_mlp_bias: Tensor  # [D]
    gru_bias_ih: Tensor  # [3 D]
    gru_bias_hh: Tensor  # [3 D]
    mlp_0_bias: Tensor  # [M]
    mlp_2_bias: Tensor  # [D]


def key_products(w: SlotAttentionWeights, num_heads: int) -> Tensor:
    """``Wq_hᵀ Wk_h / √(D / H)`` of every head, ``[H, D, C]``."""
    head_size = w.slot_size // num_heads
    q = w.project_q.view(num_heads, head_size, w.slot_size)
    k = w.project_k.view(num_heads, head_size, w.input_size)
    return torch.bmm(q.mT * float(head_size) ** -0.5, k)


def value_products(w: SlotAttentionWeights, num_heads: int) -> Tensor:
    """``W_ih Wv`` of every head, ``[H, 3 D, C]``."""
    head_size = w.slot_size // num_heads
    ih = w.gru_weight_ih.view(3 * w.slot_size, num_heads, head_size).transpose(0, 1)
    return torch.bmm(ih, w.project_v.view(num_heads, head_size, w.input_size))


def fold(w: SlotAttentionWeights, num_heads: int, dtype: torch.dtype) -> FoldedWeights:
    """Folds weights of any dtype; ``dtype`` is that of the tiles."""
    w = w.to(torch.float64 if dtype == torch.float64 else torch.float32)
    products = key_products(w, num_heads)
    matrices = _cast(
        [
            _side_by_side(products * w.norm_inputs_weight),
            _side_by_side(value_products(w, num_heads)),
            w.gru_weight_hh,
            w.mlp_0_weight,
            w.mlp_2_weight,
        ],
        dtype,
    )
    vectors = [
        w.norm_inputs_weight,
        w.norm_inputs_bias,
        w.norm_slots_weight,
        w.norm_slots_bias,
        w.norm_mlp_weight,
        w.norm_mlp_bias,
        w.gru_bias_ih,
        w.gru_bias_hh,
        w.mlp_0_bias,
        w.mlp_2_bias,
    ]
    keys_bias = (products @ w.norm_inputs_bias).T  # [D, H]
    return FoldedWeights(*matrices, *(x.contiguous() for x in (keys_bias, *vectors)))


def _side_by_side(x: Tensor) -> Tensor:
    """``[H, rows, C]`` to ``[rows, H C]``."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _cast(matrices: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """All matrices in another dtype by two kernels, not one each."""
    if matrices[0].dtype == dtype:
        return [matrix.contiguous() for matrix in matrices]
    flat = torch.cat([matrix.reshape(-1) for matrix in matrices]).to(dtype)
    parts = flat.split([matrix.numel() for matrix in matrices])
    return [part.view(matrix.shape) for part, matrix in zip(parts, matrices, strict=True)]


class ProjectionGradients(NamedTuple):
    """Gradients through the products that `fold` makes."""

    project_q: Tensor
    project_k: Tensor
    project_v: Tensor
    gru_weight_ih: Tensor
    norm_inputs_weight: Tensor  # what comes through the keys alone
    norm_inputs_bias: Tensor


def fold_backward(
    w: SlotAttentionWeights,
    num_heads: int,
    d_keys: Tensor,
    d_keys_bias: Tensor,
    d_values: Tensor,
) -> ProjectionGradients:
    """The backward of `fold`.

    Args:
        w: Weights of the accumulator's dtype.
        num_heads: H.
        d_keys: ``[D, H C]``.
        d_keys_bias: ``[D, H]``.
        d_values: ``[3 D, H C]``.
    """
    c, d, head_size = w.input_size, w.slot_size, w.slot_size // num_heads
    d_scaled = d_keys.view(d, num_heads, c).transpose(0, 1)  # [H, D, C]
    d_bias = d_keys_bias.T.unsqueeze(2)  # [H, D, 1]
    products = key_products(w, num_heads)
    d_products = d_scaled * w.norm_inputs_weight + d_bias * w.norm_inputs_bias
    d_products = d_products * float(head_size) ** -0.5
    q = w.project_q.view(num_heads, head_size, d)
    k = w.project_k.view(num_heads, head_size, c)
    v = w.project_v.view(num_heads, head_size, c)
    ih = w.gru_weight_ih.view(3 * d, num_heads, head_size).transpose(0, 1)  # [H, 3 D, D / H]
    d_by_head = d_values.view(3 * d, num_heads, c).transpose(0, 1)  # [H, 3 D, C]
    return ProjectionGradients(
        torch.bmm(k, d_products.mT).view_as(w.project_q),
        torch.bmm(q, d_products).view_as(w.project_k),
        torch.bmm(ih.mT, d_by_head).view_as(w.project_v),
        torch.bmm(d_by_head, v.mT).transpose(0, 1).reshape(3 * d, d),
        (d_scaled * products).sum((0, 1)),
        (d_bias * products).sum((0, 1)),
    )
