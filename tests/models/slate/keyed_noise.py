"""Gives the public form the noise that `fastslots.SLATE` draws from keys."""

import math

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from fastslots.models.slate import reference
from fastslots.models.slate.reference import PublicSLATE
from fastslots.noise import Noise


def with_keyed_noise(public: PublicSLATE, keys: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the public form's next forward draw what SLATE's draws: in the same order, entry by entry."""
    noise = Noise(keys)

    def gumbel_softmax(log_probs: Tensor, tau: float, hard: bool, noisy: bool) -> Tensor:
        side, vocab_size = math.isqrt(log_probs[0, 0].numel()), log_probs.shape[1]
        gumbel = noise.draw(side * side, vocab_size).gumbel(log_probs.dtype)
        gumbel = rearrange(gumbel, "b (h w) v -> b v h w", h=side)
        soft = torch.softmax((log_probs + gumbel) / tau, dim=1)
        if not hard:
            return soft
        one_hot = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
        return one_hot - soft.detach() + soft

    monkeypatch.setattr(reference, "gumbel_softmax", gumbel_softmax)
    encoder, encode = public.slot_attn, public.slot_attn.forward

    def with_drawn_slots(x: Tensor, slots: None) -> tuple[Tensor, Tensor]:
        drawn = noise.normal(encoder.num_slots, encoder.slot_size, x.dtype)
        return encode(x, encoder.slot_mu + encoder.slot_log_sigma.exp() * drawn)

    monkeypatch.setattr(encoder, "forward", with_drawn_slots)
    for module in list(public.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout) and child.p > 0:
                setattr(module, name, _KeyedDropout(child.p, noise))


class _KeyedDropout(nn.Module):
    """Dropout by keys of ``[B, L, D]``, of self-attention ``[B, H, L, L]`` and of attention to slots."""

    def __init__(self, p: float, noise: Noise) -> None:
        super().__init__()
        self.p, self.noise = p, noise

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self.noise.dropout(x, self.p)
        heads = x.shape[1]
        if x.shape[2] == x.shape[3]:
            rows = rearrange(x, "b h l m -> b (h l) m")
            return rearrange(self.noise.dropout(rows, self.p), "b (h l) m -> b h l m", h=heads)
        rows = rearrange(x, "b h l k -> b l (h k)")
        return rearrange(self.noise.dropout(rows, self.p), "b l (h k) -> b h l k", h=heads)
