"""Greedy generation with a key-value cache: one position per step, nothing allocated twice."""

import functools
import logging
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fastslots.models.slate.checks import check_no_nan
from fastslots.models.slate.decoder import (
    DecoderBlock,
    PositionalEncoding,
    SelfAttention,
    TokenDictionary,
    TransformerDecoder,
)
from fastslots_kernels.layers import why_called

_log = logging.getLogger("fastslots")


class TokenPredictor(NamedTuple):
    """The layers of SLATE that predict a token from those before it and the slots.

    Attributes:
        decoder: Its blocks are causal.
        dictionary: Embeds tokens.
        positions: At least as many as tokens are generated.
        out: Features to the logits of the V tokens.
    """

    decoder: TransformerDecoder
    dictionary: TokenDictionary
    positions: PositionalEncoding
    out: nn.Linear


@torch.no_grad()
def generate_tokens(predictor: TokenPredictor, context: Tensor, num_tokens: int) -> Tensor:
    """Appends the likeliest token ``num_tokens`` times, without dropout in any mode.

    The slots' keys and values are computed once. Every block keeps the keys and values of the
    positions done in tensors allocated for the full length, so a step costs one position. With a layer that
    must be called, as an adapter or one with hooks, a step costs the whole prefix.

    Args:
        predictor: The layers.
        context: The projected slots, ``[B, K, d_model]``.
        num_tokens: Tokens to generate, ``N``.

    Returns:
        Tokens in [0, V), ``[B, N]`` int64.

    Raises:
        ValueError: If the logits of an image hold NaN.
    """
    why = why_uncached(predictor)
    if why is not None:
        _say_uncached(why)
        return _generate_uncached(predictor, context, num_tokens)
    decoder, dictionary, positions, out = predictor
    batch_size = context.shape[0]
    token_embeddings = dictionary.dictionary.weight
    blocks = [
        _CachedBlock(cast(DecoderBlock, block), context, num_tokens) for block in decoder.blocks
    ]
    ids = torch.empty(num_tokens, batch_size, dtype=torch.int64, device=context.device)
    likeliest = []
    rows = torch.zeros(batch_size, dtype=torch.int64, device=context.device)
    for position in range(num_tokens):
        x = F.embedding(rows, token_embeddings) + positions.pe[0, position]
        for block in blocks:
            x = block.step(x, position)
        values, ids[position] = out(decoder.layer_norm(x)).max(dim=-1)
        likeliest.append(values)
        rows = ids[position] + 1
    check_no_nan("slots", torch.stack(likeliest, dim=1))
    return ids.t().contiguous()


def why_uncached(predictor: TokenPredictor) -> str | None:
    """The layer that a cache would pass over although it must be called, and why, or None."""
    decoder, dictionary, positions, _ = predictor
    layers: list[tuple[str, nn.Module, type[nn.Module], bool | None]] = [
        ("dictionary", dictionary, TokenDictionary, None),
        ("dictionary.dictionary", dictionary.dictionary, nn.Embedding, None),
        ("positional_encoder", positions, PositionalEncoding, None),
        ("tf_dec", decoder, TransformerDecoder, None),
    ]
    for index, module in enumerate(decoder.blocks):
        block, name = cast(DecoderBlock, module), f"tf_dec.blocks.{index}"
        attention = block.self_attn
        layers += [(name, block, DecoderBlock, None)]
        layers += [(f"{name}.self_attn", attention, SelfAttention, None)]
        layers += [
            (f"{name}.self_attn.{p}", getattr(attention, p), nn.Linear, False)
            for p in ("proj_q", "proj_k", "proj_v")
        ]
    for name, layer, kind, bias in layers:
        why = why_called(layer, kind, bias=bias)
        if why is not None:
            return f"{name} {why}"
    if dictionary.dictionary.max_norm is not None:
        return "dictionary.dictionary has a max_norm"
    return None


@functools.cache
def _say_uncached(why: str) -> None:
    _log.warning("tokens are generated without a cache, which takes longer: %s", why)


def _generate_uncached(predictor: TokenPredictor, context: Tensor, num_tokens: int) -> Tensor:
    """`generate_tokens` by calls of the modules alone."""
    decoder, dictionary, positions, out = predictor
    ids = torch.empty(context.shape[0], 0, dtype=torch.int64, device=context.device)
    likeliest = []
    for _ in range(num_tokens):
        features = decoder(positions(dictionary(ids)), context)
        value, token = out(features[:, -1]).max(dim=-1, keepdim=True)
        ids = torch.cat([ids, token], dim=1)
        likeliest.append(value)
    check_no_nan("slots", torch.cat(likeliest, dim=1))
    return ids


class _CachedBlock:
    """One decoder block, the keys and values it has seen, and those of the slots."""

    def __init__(self, block: DecoderBlock, context: Tensor, num_tokens: int) -> None:
        self.block = block
        attention, cross = block.self_attn, block.encoder_decoder_attn
        self.qkv_weight = torch.cat(
            [attention.proj_q.weight, attention.proj_k.weight, attention.proj_v.weight]
        )
        self.slots = cross.fold(context)
        batch_size, heads = context.shape[0], attention.num_heads
        head_size = context.shape[2] // heads
        self.qkv_shape = (batch_size, 3, heads, head_size)
        # like the slots' keys in dtype: under autocast that is not the weights'
        self.cache = self.slots.keys.new_empty(2, batch_size, heads, num_tokens, head_size)

    def step(self, x: Tensor, position: int) -> Tensor:
        """The block's output at ``position`` for its input ``x`` there, ``[B, d_model]``."""
        block = self.block
        normed = block.self_attn_layer_norm(x)
        x = (normed if block.is_first else x) + self._attend_to_prefix(normed, position)
        normed = block.encoder_decoder_attn_layer_norm(x).unsqueeze(1)
        x = x + block.encoder_decoder_attn(normed, self.slots).squeeze(1)
        output: Tensor = x + block.ffn(block.ffn_layer_norm(x))
        return output

    def _attend_to_prefix(self, x: Tensor, position: int) -> Tensor:
        qkv = F.linear(x, self.qkv_weight).view(self.qkv_shape).transpose(0, 1)
        self.cache[:, :, :, position] = qkv[1:]
        keys, values = self.cache[:, :, :, : position + 1]
        output = scaled_dot_product_attention(qkv[0].unsqueeze(2), keys, values)
        return self.block.self_attn.proj_o(output.flatten(1))  # type: ignore[no-any-return]
