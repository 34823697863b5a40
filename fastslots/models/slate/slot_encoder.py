"""The slot encoder: from token embeddings to slots."""

from torch import Tensor, nn

from fastslots.initialization import linear
from fastslots.models.slate.config import SLATEConfig
from fastslots.noise import Noise
from fastslots.slot_attention import SlotAttention
from fastslots.slot_init import SlotInit


class SlotEncoder(nn.Module):
    """Normalises and mixes token embeddings, draws the initial slots and attends.

    Args:
        config: The settings.
    """

    def __init__(self, config: SLATEConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.layer_norm = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(
            linear(d_model, d_model, weight_init="kaiming"), nn.ReLU(), linear(d_model, d_model)
        )
        self.slot_init = SlotInit(config.num_slots, config.slot_size, config.slot_init)
        self.slot_attention = SlotAttention(
            config.num_iterations,
            config.num_slots,
            d_model,
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

    def inputs(self, embeddings: Tensor) -> Tensor:
        """What slot attention takes in, ``[B, N, d_model]``."""
        inputs: Tensor = self.mlp(self.layer_norm(embeddings))
        return inputs

    def forward(
        self, embeddings: Tensor, slots: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Final slots ``[B, K, D]`` and attention ``[B, N, K]`` of ``[B, N, d_model]``.

        The initial slots are drawn from `noise` if there are none.
        """
        if slots is None:
            slots = self.slot_init(embeddings.shape[0], noise=noise)
        final_slots, attn = self.slot_attention(self.inputs(embeddings), slots)
        return final_slots, attn
