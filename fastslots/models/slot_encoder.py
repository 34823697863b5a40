"""From a set of features to slots, in any model."""

import torch
from torch import Tensor, nn

from fastslots.initialization import linear
from fastslots.models.slot_config import SlotConfig
from fastslots.noise import Noise
from fastslots.slot_attention import SlotAttention
from fastslots.slot_init import SlotInit


class SlotEncoder(nn.Module):
    """Normalises and mixes features, draws the initial slots and attends.

    Args:
        config: The settings.
        width: Of the features.
        mlp: Mixes them, one by one. Default: two layers, initialised as the public SLATE code does.
    """

    def __init__(self, config: SlotConfig, width: int, mlp: nn.Module | None = None) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.mlp = mlp or nn.Sequential(
            linear(width, width, weight_init="kaiming"), nn.ReLU(), linear(width, width)
        )
        self.slot_init = SlotInit(config.num_slots, config.slot_size, config.slot_init)
        self.slot_attention = SlotAttention(
            config.num_iterations,
            config.num_slots,
            width,
            config.slot_size,
            config.mlp_hidden_size,
            config.num_slot_heads,
            config.epsilon,
            gradient=config.gradient,
            neumann_terms=config.neumann_terms,
            init_gradient=config.init_gradient,
            backend=config.backend,
        )
        if not self.slot_attention.init_learns:
            self.slot_init.freeze()

    def inputs(self, features: Tensor) -> Tensor:
        """What slot attention takes in, ``[B, N, width]``."""
        # In the dtype of the weights: under autocast features are narrow, and of those PyTorch's layer norm
        # on a CPU sums the gradients of its weights in bfloat16, which loses most of them.
        normalised = self.layer_norm(features.to(self.layer_norm.weight.dtype))
        inputs: Tensor = self.mlp(normalised)
        return inputs

    def forward(
        self, features: Tensor, slots: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Final slots ``[B, K, D]`` and attention ``[B, N, K]`` of ``[B, N, width]``.

        The initial slots are drawn from `noise` if there are none.
        """
        if slots is None:
            slots = self.slot_init(features.shape[0], noise=noise)
        final_slots, attn = self.slot_attention(self.inputs(features), slots)
        return final_slots, attn

    @torch.no_grad()
    def residual(self, features: Tensor, slots: Tensor) -> Tensor:
        """The relative residual ``‖f(s) - s‖ / ‖f(s)‖`` of slots s, f being one step, ``[B]``."""
        # Implicit slot attention takes one step after the iterations it counts.
        iterations = 1 if self.slot_attention.gradient == "unrolled" else 0
        after, _ = self.slot_attention(self.inputs(features), slots, iterations, return_attn=False)
        change = torch.linalg.vector_norm((after - slots).flatten(1), dim=1)
        residual: Tensor = change / torch.linalg.vector_norm(after.flatten(1), dim=1)
        return residual
