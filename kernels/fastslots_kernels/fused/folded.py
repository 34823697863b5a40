"""The weights of a step as the kernels read them: products folded, matrices in the tile dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.weights import SlotAttentionWeights


class FoldedWeights(NamedTuple):
    """Weights of a step, products of two weights made. All contiguous.

    Matrices have the tile dtype, vectors the accumulator's: float32 (float64 for float64).
    With s̃ the normalised slots (affine included) and ``g = s̃ G``: ``m = g ∘ scale``, ``c = g · shift``;
    the GRU's input gates are ``ū W′ᵀ + gru_bias_ih`` with ``ū = U / Z ∘ scale + shift``, 0 where Z is 0.
    """

    key_weight: Tensor  # G, [D, H C]: Wq_hᵀ Wk_h / √(D / H), heads side by side
    value_weight: Tensor  # W′, [3 D, H C]: W_ih Wv, heads side by side
    hidden_weight: Tensor  # [3 D, D]: W_hh
    mlp_0: Tensor  # [M, D]
    mlp_2: Tensor  # [D, M]
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

    @classmethod
    def of(cls, matrices: Sequence[Tensor], w: SlotAttentionWeights) -> FoldedWeights:
        """With the matrices that were made of `w`."""
        dtype = torch.float64 if matrices[0].dtype == torch.float64 else torch.float32
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
        return cls(*matrices, *(vector.to(dtype).contiguous() for vector in vectors))


def folded_shapes(w: SlotAttentionWeights, num_heads: int) -> list[tuple[int, int]]:
    """Shapes of the matrices of `FoldedWeights`."""
    c, d, m = w.input_size, w.slot_size, w.mlp_0_bias.shape[0]
    return [(d, num_heads * c), (3 * d, num_heads * c), (3 * d, d), (m, d), (d, m)]


def float32_precision() -> str:
    """Of products of float32, as PyTorch is told to make its own: ``"tf32"`` or ``"ieee"``."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
