"""Slot attention and transformer in the form of the public SLATE code; no layer is shared with fastslots."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslots.models.slate.config import SLATEConfig


class PublicSlotEncoder(nn.Module):
    """Normalises and mixes token embeddings, draws the initial slots and attends.

    Args:
        config: The settings.
    """

    def __init__(self, config: SLATEConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.num_slots, self.slot_size = config.num_slots, config.slot_size
        self.layer_norm = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(
            linear(d_model, d_model, relu=True), nn.ReLU(), linear(d_model, d_model)
        )
        self.slot_mu = nn.Parameter(nn.init.xavier_uniform_(torch.zeros(1, 1, self.slot_size)))
        self.slot_log_sigma = nn.Parameter(
            nn.init.xavier_uniform_(torch.zeros(1, 1, self.slot_size))
        )
        self.slot_attention = PublicSlotAttention(config)

    def forward(self, x: Tensor, slots: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Final slots ``[B, K, D]`` and attention ``[B, N, K]`` of ``[B, N, d_model]``."""
        if slots is None:
            noise = x.new_empty(len(x), self.num_slots, self.slot_size).normal_()
            slots = self.slot_mu + self.slot_log_sigma.exp() * noise
        final_slots, attn = self.slot_attention(self.mlp(self.layer_norm(x)), slots)
        return final_slots, attn


class PublicSlotAttention(nn.Module):
    """Slot attention that makes keys and values and is differentiated through every iteration.

    Args:
        config: The settings.

    Source:
        Locatello et al. 2020, Algorithm 1, with heads as in the public SLATE code.
    """

    def __init__(self, config: SLATEConfig) -> None:
        super().__init__()
        size = config.slot_size
        self.num_iterations, self.epsilon = config.num_iterations, config.epsilon
        self.num_heads = config.num_slot_heads
        self.norm_inputs = nn.LayerNorm(config.d_model)
        self.norm_slots = nn.LayerNorm(size)
        self.norm_mlp = nn.LayerNorm(size)
        self.project_q = linear(size, size, bias=False)
        self.project_k = linear(config.d_model, size, bias=False)
        self.project_v = linear(config.d_model, size, bias=False)
        self.gru = nn.GRUCell(size, size)
        nn.init.xavier_uniform_(self.gru.weight_ih)
        nn.init.orthogonal_(self.gru.weight_hh)
        nn.init.zeros_(self.gru.bias_ih)
        nn.init.zeros_(self.gru.bias_hh)
        hidden = config.mlp_hidden_size
        self.mlp = nn.Sequential(linear(size, hidden, relu=True), nn.ReLU(), linear(hidden, size))

    def forward(self, inputs: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Final slots ``[B, K, D]`` and attention ``[B, N, K]`` of ``[B, N, d_model]``."""
        inputs = self.norm_inputs(inputs)
        k, v = (
            split_heads(project(inputs), self.num_heads)
            for project in (self.project_k, self.project_v)
        )
        k = k * k.shape[-1] ** -0.5
        for _ in range(self.num_iterations):
            slots, attn = self._step(k, v, slots)
        return slots, attn

    def _step(self, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        q = split_heads(self.project_q(self.norm_slots(slots)), self.num_heads)
        logits = (k @ q.transpose(-1, -2)).transpose(1, 2)  # [B, N, H, K]
        attn = F.softmax(logits.flatten(2), dim=-1).view_as(logits).transpose(1, 2)
        weights = attn + self.epsilon
        weights = weights / weights.sum(dim=-2, keepdim=True)
        updates = (weights.transpose(-1, -2) @ v).transpose(1, 2).flatten(2)
        slots = self.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        return slots + self.mlp(self.norm_mlp(slots)), attn.sum(dim=1)


class PublicDecoder(nn.Module):
    """Decoder blocks and a last normalisation.

    Args:
        config: The settings.
    """

    def __init__(self, config: SLATEConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            PublicBlock(config, is_first=i == 0) for i in range(config.num_decoder_blocks)
        )
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        """Decodes ``[B, L, d_model]`` given the projected slots ``[B, K, d_model]``."""
        for block in self.blocks:
            x = block(x, slots)
        output: Tensor = self.layer_norm(x)
        return output


class PublicBlock(nn.Module):
    """Self-attention, attention to the slots and a feed-forward net, normalised before each.

    Args:
        config: The settings.
        is_first: Whether the normalised input replaces the residual stream.
    """

    def __init__(self, config: SLATEConfig, is_first: bool) -> None:
        super().__init__()
        length, d_model = config.num_tokens, config.d_model
        gain = (3 * config.num_decoder_blocks) ** -0.5
        self.is_first = is_first
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.self_attn = PublicAttention(config, gain)
        future = torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)
        self.self_attn_mask = nn.Parameter(future, requires_grad=False)
        self.encoder_decoder_attn_layer_norm = nn.LayerNorm(d_model)
        self.encoder_decoder_attn = PublicAttention(config, gain)
        self.ffn_layer_norm = nn.LayerNorm(d_model)
        self.ffn = nn.Sequential(
            linear(d_model, 4 * d_model, relu=True),
            nn.ReLU(),
            linear(4 * d_model, d_model, gain=gain),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        """Maps ``[B, L, d_model]`` given the projected slots ``[B, K, d_model]``."""
        length = x.shape[1]
        normed = self.self_attn_layer_norm(x)
        if self.is_first:
            x = normed
        x = x + self.self_attn(normed, normed, self.self_attn_mask[:length, :length])
        x = x + self.encoder_decoder_attn(self.encoder_decoder_attn_layer_norm(x), slots)
        output: Tensor = x + self.ffn(self.ffn_layer_norm(x))
        return output


class PublicAttention(nn.Module):
    """Attention whose logits are made, masked by hand, and dropped out after the softmax.

    Args:
        config: The settings.
        gain: Of the output projection's initial weights.
    """

    def __init__(self, config: SLATEConfig, gain: float) -> None:
        super().__init__()
        d_model = config.d_model
        self.num_heads = config.num_decoder_heads
        self.attn_dropout = nn.Dropout(config.dropout)
        self.output_dropout = nn.Dropout(config.dropout)
        self.proj_q = linear(d_model, d_model, bias=False)
        self.proj_k = linear(d_model, d_model, bias=False)
        self.proj_v = linear(d_model, d_model, bias=False)
        self.proj_o = linear(d_model, d_model, bias=False, gain=gain)

    def forward(self, x: Tensor, source: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Reads ``source`` ``[B, S, d_model]`` for each of ``x`` ``[B, L, d_model]``.

        Args:
            x: Makes the queries.
            source: Makes keys and values.
            hidden: True where a query must not look, ``[L, S]`` bool.
        """
        q = split_heads(self.proj_q(x), self.num_heads)
        k = split_heads(self.proj_k(source), self.num_heads)
        v = split_heads(self.proj_v(source), self.num_heads)
        logits = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        if hidden is not None:
            logits = logits.masked_fill(hidden, float("-inf"))
        attn = self.attn_dropout(F.softmax(logits, dim=-1))
        output: Tensor = self.output_dropout(self.proj_o((attn @ v).transpose(1, 2).flatten(2)))
        return output


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[B, L, D]`` to ``[B, H, L, D / H]``."""
    return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)


def linear(
    size_in: int, size_out: int, bias: bool = True, gain: float = 1.0, relu: bool = False
) -> nn.Linear:
    """A linear layer with the public code's initial weights: Kaiming before a ReLU, else Xavier."""
    layer = nn.Linear(size_in, size_out, bias)
    if relu:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    else:
        nn.init.xavier_uniform_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
