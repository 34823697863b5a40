"""One slot-attention step the usual way: the oracle of every other backend.

The structure of the paper's Figure 2 with the step of the public SLATE code: `k` is scaled by
``(slot_size / num_heads) ** -0.5``, the softmax runs over heads and slots together, and epsilon is added
to the softmax in numerator and denominator. (Figure 2 prints epsilon in the denominator alone.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslots_kernels.fixed_point import Step
from fastslots_kernels.layers import Layers
from fastslots_kernels.weights import SlotAttentionWeights


class ReferenceStep(Step):
    """Keys and values made once, then steps in eager PyTorch under the caller's grad mode.

    Arguments as in `fastslots_kernels.slot_attention`, already checked; `layers` are called.
    """

    def __init__(
        self,
        inputs: Tensor,
        layers: Layers,
        *,
        num_heads: int,
        epsilon: float,
        mask: Tensor | None,
    ) -> None:
        self.layers, self.num_heads, self.epsilon = layers, num_heads, epsilon
        self.valid = None if mask is None else mask[:, None, :, None]  # [B, 1, N, 1]
        if mask is not None:
            inputs = inputs.masked_fill(~mask[..., None], 0)
        x = layers.norm_inputs(inputs)
        k = layers.project_k(x)
        self.k = self._heads(k) * (k.shape[-1] // num_heads) ** -0.5
        self.v = self._heads(layers.project_v(x))

    def __call__(self, slots: Tensor, *, return_attn: bool) -> tuple[Tensor, Tensor | None]:
        """``[B, K, D]`` slots to the next ones, and the softmax ``[B, N, K]`` summed over heads."""
        layers, dtype = self.layers, slots.dtype
        (b, num_slots, d), n = slots.shape, self.k.shape[2]
        q = layers.project_q(layers.norm_slots(slots))
        logits = self.k @ self._heads(q).transpose(-1, -2)  # [B, H, N, K]
        joint = logits.transpose(1, 2).flatten(2)  # [B, N, H K]
        # Wide, as the sums below: epsilon is 0 in float16, and CPU autocast leaves a softmax narrow.
        wide = torch.promote_types(joint.dtype, torch.float32)
        attn = F.softmax(joint, dim=-1, dtype=wide)
        attn = attn.view(b, n, self.num_heads, num_slots).transpose(1, 2)
        if self.valid is not None:
            attn = attn.masked_fill(~self.valid, 0)

        weighted = attn + self.epsilon
        if self.valid is not None:
            weighted = weighted.masked_fill(~self.valid, 0)
        total = weighted.sum(dim=-2, keepdim=True)
        # Only an image without a valid input sums to 0: its updates are 0, not 0 / 0.
        weighted = weighted / torch.where(total > 0, total, 1)
        updates = weighted.to(self.v.dtype).transpose(-1, -2) @ self.v
        updates = updates.transpose(1, 2).reshape(b * num_slots, d)

        slots = layers.gru(updates.to(dtype), slots.reshape(b * num_slots, d)).view(b, num_slots, d)
        slots = slots + layers.mlp(layers.norm_mlp(slots))
        return slots, attn.sum(1).to(dtype) if return_attn else None

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, n, H d]`` to ``[B, H, n, d]``."""
        b, n, d = x.shape
        return x.view(b, n, self.num_heads, d // self.num_heads).transpose(1, 2)


class PlainLayers:
    """The layers of Figure 2, of their tensors."""

    def __init__(self, weights: SlotAttentionWeights) -> None:
        self.weights = weights

    def norm_inputs(self, x: Tensor) -> Tensor:
        """As in `Layers`."""
        w = self.weights
        return _norm(x, w.norm_inputs_weight, w.norm_inputs_bias, w.norm_inputs_eps)

    def norm_slots(self, x: Tensor) -> Tensor:
        """As in `Layers`."""
        w = self.weights
        return _norm(x, w.norm_slots_weight, w.norm_slots_bias, w.norm_slots_eps)

    def norm_mlp(self, x: Tensor) -> Tensor:
        """As in `Layers`."""
        w = self.weights
        return _norm(x, w.norm_mlp_weight, w.norm_mlp_bias, w.norm_mlp_eps)

    def project_q(self, x: Tensor) -> Tensor:
        """As in `Layers`."""
        return F.linear(x, self.weights.project_q)

    def project_k(self, x: Tensor) -> Tensor:
        """As in `Layers`."""
        return F.linear(x, self.weights.project_k)

    def project_v(self, x: Tensor) -> Tensor:
        """As in `Layers`."""
        return F.linear(x, self.weights.project_v)

    def gru(self, x: Tensor, hidden: Tensor) -> Tensor:
        """As in `Layers`."""
        w = self.weights
        return torch.gru_cell(
            x, hidden, w.gru_weight_ih, w.gru_weight_hh, w.gru_bias_ih, w.gru_bias_hh
        )

    def mlp(self, x: Tensor) -> Tensor:
        """As in `Layers`."""
        w = self.weights
        hidden = F.relu(F.linear(x, w.mlp_0_weight, w.mlp_0_bias))
        return F.linear(hidden, w.mlp_2_weight, w.mlp_2_bias)


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    # Under autocast in the dtype of the weights, as on CUDA: of narrow inputs a CPU sums the gradients of the
    # weights in bfloat16, which loses most of many.
    wide = x.to(torch.promote_types(x.dtype, weight.dtype))
    return F.layer_norm(wide, (x.shape[-1],), weight, bias, eps)
