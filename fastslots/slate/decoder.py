"""The autoregressive transformer: token embeddings, positions and decoder blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fastslots.initialization import linear


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
    """Adds learned positions, then drops out."""

    def __init__(self, max_length: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.pe = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, max_length, d_model)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Places ``embeddings`` ``[B, L, d_model]`` at the first L positions."""
        output: Tensor = self.dropout(embeddings + self.pe[:, : embeddings.shape[1]])
        return output


class MultiHeadAttention(nn.Module):
    """Attention with bias-free projections and dropout on the attention and on the output."""

    def __init__(self, d_model: int, num_heads: int, dropout: float, gain: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.proj_q = linear(d_model, d_model, bias=False)
        self.proj_k = linear(d_model, d_model, bias=False)
        self.proj_v = linear(d_model, d_model, bias=False)
        self.proj_o = linear(d_model, d_model, bias=False, gain=gain)

    def forward(self, queries: Tensor, source: Tensor, is_causal: bool = False) -> Tensor:
        """Reads ``source`` ``[B, S, d_model]`` for each of ``queries`` ``[B, L, d_model]``."""
        dropout = self.dropout if self.training else 0.0
        output = scaled_dot_product_attention(
            self.split_heads(self.proj_q(queries)),
            self.split_heads(self.proj_k(source)),
            self.split_heads(self.proj_v(source)),
            dropout_p=dropout,
            is_causal=is_causal,
        )
        return F.dropout(self.proj_o(output.transpose(1, 2).flatten(2)), dropout)

    def split_heads(self, x: Tensor) -> Tensor:
        """``[B, L, d_model]`` to ``[B, H, L, d_model / H]``."""
        return x.view(*x.shape[:2], self.num_heads, x.shape[2] // self.num_heads).transpose(1, 2)


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the slots and a feed-forward net, normalised before each.

    The first block normalises its input in place of the residual stream: what enters its residual
    connection is the normalised embedding.
    """

    def __init__(
        self, d_model: int, num_heads: int, dropout: float, gain: float, is_first: bool
    ) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.self_attn = MultiHeadAttention(d_model, num_heads, dropout, gain)
        self.encoder_decoder_attn_layer_norm = nn.LayerNorm(d_model)
        self.encoder_decoder_attn = MultiHeadAttention(d_model, num_heads, dropout, gain)
        self.ffn_layer_norm = nn.LayerNorm(d_model)
        self.ffn = nn.Sequential(
            linear(d_model, 4 * d_model, weight_init="kaiming"),
            nn.ReLU(),
            linear(4 * d_model, d_model, gain=gain),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Maps ``x`` ``[B, L, d_model]`` given the projected slots ``[B, K, d_model]``."""
        normed = self.self_attn_layer_norm(x)
        x = (normed if self.is_first else x) + self.self_attn(normed, normed, is_causal=True)
        normed = self.encoder_decoder_attn_layer_norm(x)
        x = x + self.encoder_decoder_attn(normed, context)
        x = x + self.ffn(self.ffn_layer_norm(x))
        return x


class TransformerDecoder(nn.Module):
    """Decoder blocks and a last normalisation.

    Args:
        num_blocks: Blocks, at least 1.
        d_model: Width.
        num_heads: Attention heads, dividing ``d_model``.
        dropout: Dropout probability.

    Source:
        Layers, names and initialisation as in the public SLATE code.
    """

    def __init__(self, num_blocks: int, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        gain = (3 * num_blocks) ** -0.5  # three residual branches per block
        self.blocks = nn.ModuleList(
            DecoderBlock(d_model, num_heads, dropout, gain, is_first=index == 0)
            for index in range(num_blocks)
        )
        self.layer_norm = nn.LayerNorm(d_model)

    def forward(self, embeddings: Tensor, context: Tensor) -> Tensor:
        """Decodes ``embeddings`` ``[B, L, d_model]``; position i sees positions up to i.

        Args:
            embeddings: Embedded tokens, the begin-of-sequence token first.
            context: The projected slots, ``[B, K, d_model]``.

        Returns:
            Features of the next token, ``[B, L, d_model]``.
        """
        x = embeddings
        for block in self.blocks:
            x = block(x, context)
        output: Tensor = self.layer_norm(x)
        return output
