"""The autoregressive transformer: token embeddings, positions and decoder blocks.

Dropout is on wherever noise is given, and off without.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslots.initialization import linear
from fastslots.models.precision import wide_dtype
from fastslots.models.slate.causal_attention import causal_attention
from fastslots.noise import Noise
from fastslots_kernels.layers import why_called


class TokenDictionary(nn.Module):
    """Embeds tokens behind a begin-of-sequence token, whose embedding is row 0."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.dictionary = nn.Embedding(vocab_size + 1, d_model)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeds ``ids`` ``[B, N]``, tokens in [0, V), to ``[B, 1 + N, d_model]``."""
        embeddings: Tensor = self.dictionary(F.pad(ids + 1, (1, 0)))
        return embeddings


class PositionalEncoding(nn.Module):
    """Adds learned positions, then drops out.

    Args:
        side: Of the square of tokens, behind a position of no place.
        d_model: Width.
        dropout: Dropout probability.
        init: ``"normal"`` or ``"smooth"``; see `SLATEConfig`.
    """

    def __init__(self, side: int, d_model: int, dropout: float, init: str = "normal") -> None:
        super().__init__()
        self.pe = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, 1 + side**2, d_model)))
        self.dropout = dropout
        if init == "smooth":
            with torch.no_grad():
                self.pe[0, 1:] = smooth_positions(side, d_model)

    def forward(self, embeddings: Tensor, noise: Noise | None = None) -> Tensor:
        """Places ``embeddings`` ``[B, L, d_model]`` at the first L positions."""
        return drop_out(embeddings + self.pe[:, : embeddings.shape[1]], self.dropout, noise)


def smooth_positions(side: int, width: int) -> Tensor:
    """Random embeddings of the places of a square, ``[side², width]``, in which neighbours are alike.

    Every one of the `width` numbers is a random sum, of standard deviation 1/2, of the coordinates x and y in
    [0, 1] and of sin(kπ·) and cos(kπ·) of each, k = 1, 2, all of them standardised.
    """
    coordinate = (torch.arange(side) + 0.5) / side
    waves = [f(k * math.pi * coordinate) for k in (1, 2) for f in (torch.sin, torch.cos)]
    along = torch.stack([coordinate, *waves], -1)
    along = along - along.mean(0)
    along = along / along.std(0, correction=0).clamp_min(1e-3)  # a wave that is constant stays 0
    rows, columns = along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)
    features = torch.cat((rows, columns), -1).flatten(0, 1)
    weights = torch.randn(features.shape[1], width) / (2 * math.sqrt(features.shape[1]))
    return features @ weights


class MultiHeadAttention(nn.Module):
    """The bias-free projections of an attention, and its dropout."""

    def __init__(self, d_model: int, num_heads: int, dropout: float, gain: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.proj_q = linear(d_model, d_model, bias=False)
        self.proj_k = linear(d_model, d_model, bias=False)
        self.proj_v = linear(d_model, d_model, bias=False)
        self.proj_o = linear(d_model, d_model, bias=False, gain=gain)

    def split_heads(self, x: Tensor) -> Tensor:
        """``[B, L, d_model]`` to ``[B, H, L, d_model / H]``."""
        shape = (*x.shape[:2], self.num_heads, x.shape[2] // self.num_heads)
        return x.view(shape).transpose(1, 2)


class SelfAttention(MultiHeadAttention):
    """Each position reads those up to itself; for `backend` see `causal_attention`."""

    def __init__(
        self, d_model: int, num_heads: int, dropout: float, gain: float, backend: str
    ) -> None:
        super().__init__(d_model, num_heads, dropout, gain)
        self.backend = backend

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """``[B, L, d_model]`` of ``x`` ``[B, L, d_model]``."""
        q, k, v = (
            self.split_heads(project(x)) for project in (self.proj_q, self.proj_k, self.proj_v)
        )
        output = causal_attention(q, k, v, self.dropout, noise, self.backend)
        return drop_out(self.proj_o(output.transpose(1, 2).flatten(2)), self.dropout, noise)


class FoldedSlots(NamedTuple):
    """Slots as an attention reads them, its query and output projections folded in.

    Attributes:
        keys: ``[B, H * K, d_model]``; not folded, ``[B, H * K, d_model / H]``.
        values: The same.
        folded: Whether the projections are folded in. They are not if they must be called.
    """

    keys: Tensor
    values: Tensor
    folded: bool


class SlotReader(MultiHeadAttention):
    """Each position reads the slots.

    Slots are few, positions many. So the projections of queries and outputs are moved to the slots:
    ``(x Wqᵀ) kᵀ = x (k Wq)ᵀ`` and ``(A v) Woᵀ = A (v Woᵀ)``, exactly. In place of two products with
    matrices d_model x d_model, every position has two with d_model x H K. Projections that must be called,
    as adapters are, stay where they were.
    """

    def fold(self, context: Tensor) -> FoldedSlots:
        """The projected slots ``[B, K, d_model]`` as `forward` wants them."""
        keys, values = (self.split_heads(p(context)) for p in (self.proj_k, self.proj_v))
        head_size, d_model = keys.shape[-1], context.shape[-1]
        if any(why_called(p, nn.Linear, bias=False) for p in (self.proj_q, self.proj_o)):
            keys, values = (x.flatten(1, 2) for x in (keys * head_size**-0.5, values))
            return FoldedSlots(keys, values, folded=False)
        to_query = self.proj_q.weight.view(self.num_heads, head_size, d_model)
        to_output = self.proj_o.weight.t().reshape(self.num_heads, head_size, d_model)
        scale = head_size**-0.5
        return FoldedSlots(
            (keys * scale @ to_query).flatten(1, 2),
            (values @ to_output).flatten(1, 2),
            folded=True,
        )

    def forward(self, x: Tensor, slots: FoldedSlots, noise: Noise | None = None) -> Tensor:
        """``[B, L, d_model]`` of ``x`` ``[B, L, d_model]``."""
        num_slots = slots.keys.shape[1] // self.num_heads
        if slots.folded:
            logits = (x @ slots.keys.transpose(1, 2)).unflatten(2, (self.num_heads, num_slots))
        else:
            keys = slots.keys.unflatten(1, (self.num_heads, num_slots))
            logits = (self.split_heads(self.proj_q(x)) @ keys.transpose(2, 3)).transpose(1, 2)
        attn = torch.softmax(logits, dim=-1, dtype=wide_dtype(logits)).flatten(2)
        attn = drop_out(attn, self.dropout, noise).to(slots.values.dtype)
        if slots.folded:
            output = attn @ slots.values
        else:
            values = slots.values.unflatten(1, (self.num_heads, num_slots))
            by_head = attn.unflatten(2, (self.num_heads, num_slots)).transpose(1, 2)
            output = self.proj_o((by_head @ values).transpose(1, 2).flatten(2))
        return drop_out(output, self.dropout, noise)


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the slots and a feed-forward net, normalised before each.

    The first block normalises its input in place of the residual stream: what enters its residual
    connection is the normalised embedding.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float,
        gain: float,
        backend: str,
        is_first: bool,
    ) -> None:
        super().__init__()
        self.is_first = is_first
        self.dropout = dropout
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.self_attn = SelfAttention(d_model, num_heads, dropout, gain, backend)
        self.encoder_decoder_attn_layer_norm = nn.LayerNorm(d_model)
        self.encoder_decoder_attn = SlotReader(d_model, num_heads, dropout, gain)
        self.ffn_layer_norm = nn.LayerNorm(d_model)
        self.ffn = nn.Sequential(
            linear(d_model, 4 * d_model, weight_init="kaiming"),
            nn.ReLU(inplace=True),
            linear(4 * d_model, d_model, gain=gain),
        )

    def forward(self, x: Tensor, context: Tensor, noise: Noise | None = None) -> Tensor:
        """Maps ``x`` ``[B, L, d_model]`` given the projected slots ``[B, K, d_model]``."""
        normed = self.self_attn_layer_norm(x)
        x = (normed if self.is_first else x) + self.self_attn(normed, noise)
        reader = self.encoder_decoder_attn
        x = x + reader(self.encoder_decoder_attn_layer_norm(x), reader.fold(context), noise)
        # Flat, since a 3-dimensional output of nn.Linear is a view, and the backward of a ReLU in the place
        # of a view copies.
        output = self.ffn(self.ffn_layer_norm(x).flatten(0, 1)).view_as(x)
        return x + drop_out(output, self.dropout, noise)


def drop_out(x: Tensor, dropout: float, noise: Noise | None) -> Tensor:
    """``x`` ``[B, L, D]`` after dropout; unchanged without noise."""
    return x if noise is None or dropout == 0 else noise.dropout(x, dropout)


class TransformerDecoder(nn.Module):
    """Decoder blocks and a last normalisation.

    Args:
        num_blocks: Blocks, at least 1.
        d_model: Width.
        num_heads: Attention heads, dividing ``d_model``.
        dropout: Dropout probability.
        backend: Of the self-attention, see `causal_attention`.

    Source:
        Layers, names and initialisation as in the public SLATE code.
    """

    def __init__(
        self,
        num_blocks: int,
        d_model: int,
        num_heads: int,
        dropout: float,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        gain = (3 * num_blocks) ** -0.5  # three residual branches per block
        self.blocks = nn.ModuleList(
            DecoderBlock(d_model, num_heads, dropout, gain, backend, is_first=index == 0)
            for index in range(num_blocks)
        )
        self.layer_norm = nn.LayerNorm(d_model)

    def forward(self, embeddings: Tensor, context: Tensor, noise: Noise | None = None) -> Tensor:
        """Decodes ``embeddings`` ``[B, L, d_model]``; position i sees positions up to i.

        Args:
            embeddings: Embedded tokens, the begin-of-sequence token first.
            context: The projected slots, ``[B, K, d_model]``.
            noise: Of the dropout; None: no dropout.

        Returns:
            Features of the next token, ``[B, L, d_model]``.
        """
        x = embeddings
        for block in self.blocks:
            x = block(x, context, noise)
        output: Tensor = self.layer_norm(x)
        return output
