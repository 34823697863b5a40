"""Generation without a cache: the oracle and the baseline of `SLATE.generate`."""

import torch
from torch import Tensor

from fastslots.models.slate import SLATE


@torch.no_grad()
def generate_uncached(model: SLATE, slots: Tensor) -> Tensor:
    """Greedy tokens (B, N); every step runs the decoder on the whole prefix. Dropout: eval mode."""
    ids = torch.empty(len(slots), 0, dtype=torch.int64, device=slots.device)
    context = model.slot_proj(slots)
    for _ in range(model.config.num_tokens):
        embeddings = model.positional_encoder(model.dictionary(ids))
        best = model.out(model.tf_dec(embeddings, context)[:, -1]).argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, best], dim=1)
    return ids
