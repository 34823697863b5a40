"""From features of patches to tokens: the dVAE's relaxed ones, and those that the transformer sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslots.models.precision import product_dtype, wide_dtype, without_autocast
from fastslots.models.slate.checks import check_no_nan
from fastslots.models.slate.chunks import Part, add_product, parts, whole_output
from fastslots.noise import Draw, Noise
from fastslots_kernels.derivatives import first_order, refuse_transforms, transforms_active


class TokenWeights(NamedTuple):
    """The layers on both sides of the tokens: 1 x 1 convolutions, as matrices.

    Attributes:
        to_logits: Features to the logits of the tokens, ``[V, D]``.
        bias: Of the logits, ``[V]``.
        from_tokens: Token weights to the decoder's first features, ``[E, V]``.
    """

    to_logits: Tensor
    bias: Tensor
    from_tokens: Tensor


class TokenSample(NamedTuple):
    """What `sample_tokens` returns.

    Attributes:
        decoded: ``from_tokens`` of the relaxed tokens, ``[B, N, E]``; differentiable.
        ids: Tokens drawn on their own, or the likeliest, ``[B, N]`` int64; without gradient.
    """

    decoded: Tensor
    ids: Tensor


_NAME = "the sampling of tokens in parts"


def sample_tokens(
    features: Tensor,
    weights: TokenWeights,
    tau: float | Tensor,
    hard: bool,
    noise: Noise | None,
    backend: str = "auto",
    draw_ids: bool = True,
) -> TokenSample:
    """Draws relaxed tokens and passes them on, and draws, or finds, the tokens of the transformer.

    With logits ``l = features @ to_logits.T + bias`` and independent Gumbel noise g, g': the relaxed
    tokens are ``z = softmax((l + g) / tau)``, and ``ids = argmax(l + g')``. Neither l nor z,
    ``[B, N, V]``, is kept: both are computed part by part (see `parts`), and again in the backward pass
    with the same noise.

    Args:
        features: ``[B, N, D]``.
        weights: The layers before and after.
        tau: Temperature of the relaxation, above 0; a number or a scalar tensor.
        hard: Makes z one-hot, with the gradient of the relaxed z (straight-through).
        noise: None: no noise; z is the tempered softmax and the tokens are the likeliest.
        backend: ``"reference"`` makes all of l and z at once, and has derivatives of every order, in tau too.
        draw_ids: Whether there is noise g'; without it ids are the likeliest tokens.

    Raises:
        ValueError: If tau needs a gradient and `backend` is not ``"reference"``.

    Source:
        Jang et al. 2017, "Categorical Reparameterization with Gumbel-Softmax"; two draws as in SLATE.
    """
    draws: list[Tensor] = []
    if noise is not None:
        count = 2 if draw_ids else 1
        for draw in (noise.draw(features.shape[1], len(weights.bias)) for _ in range(count)):
            draws += [draw.rows, draw.columns]
    dtype = product_dtype(features)
    with without_autocast(features):
        if backend == "reference":
            return _sample_whole(features, weights, tau, hard, dtype, draws)
        refuse_transforms(_NAME, (features, *weights))
        if isinstance(tau, Tensor) and tau.requires_grad:
            raise ValueError('tau must need no gradient; take tau.detach(), or backend="reference"')
        decoded, ids = _SampleTokens.apply(features, *weights, tau, hard, dtype, *draws)
    return TokenSample(decoded, ids)


@torch.no_grad()
def likeliest_tokens(features: Tensor, weights: TokenWeights) -> Tensor:
    """The tokens ``[B, N]`` int64 of the greatest logits, which are never all there at once.

    Args:
        features: ``[B, N, D]``.
        weights: The layers before and after.

    Raises:
        ValueError: If the logits of an image hold NaN.
    """
    batch_size, num_tokens, _ = features.shape
    ids = torch.empty(batch_size, num_tokens, dtype=torch.int64, device=features.device)
    greatest = torch.empty_like(ids, dtype=wide_dtype(features))
    dtype = product_dtype(features)
    with without_autocast(features):
        layers = _Layers(features, weights.to_logits, weights.bias, dtype)
        for part in parts(batch_size, num_tokens, len(weights.bias), features.device):
            values, tokens = layers.logits(part).max(-1)
            part.of(greatest).copy_(values)
            part.of(ids).copy_(tokens)
    check_no_nan("image", greatest)
    return ids


def _sample_whole(
    features: Tensor,
    weights: TokenWeights,
    tau: float | Tensor,
    hard: bool,
    dtype: torch.dtype,
    draws: Sequence[Tensor],
) -> TokenSample:
    """`sample_tokens` in plain PyTorch, without parts."""
    layers = _Layers(features, weights.to_logits, weights.bias, dtype)
    whole = Part(0, features.shape[0], 0, features.shape[1])
    logits = layers.logits(whole)
    z = _relaxed(logits, tau, _draw(draws[:2], whole))
    ids = _perturbed(logits.detach(), _draw(draws[2:], whole)).argmax(-1)
    if hard:
        one_hot = F.one_hot(z.argmax(-1), z.shape[-1]).to(z.dtype)
        z = one_hot + (z - z.detach())
    return TokenSample(F.linear(z.to(dtype), weights.from_tokens.to(dtype)), ids)


class _SampleTokens(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        to_logits: Tensor,
        bias: Tensor,
        from_tokens: Tensor,
        tau: float | Tensor,
        hard: bool,
        dtype: torch.dtype,
        *draws: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.tau, ctx.hard, ctx.dtype = tau, hard, dtype
        ctx.save_for_backward(features, to_logits, bias, from_tokens, *draws)
        batch_size, num_tokens, _ = features.shape
        layers = _Layers(features, to_logits, bias, dtype)
        w_out = from_tokens.to(dtype).t().contiguous()
        decoded = torch.empty(
            batch_size, num_tokens, w_out.shape[1], dtype=dtype, device=features.device
        )
        ids = torch.empty(batch_size, num_tokens, dtype=torch.int64, device=features.device)
        for part in parts(batch_size, num_tokens, len(bias), features.device):
            logits = layers.logits(part)
            z = _relaxed(logits, tau, _draw(draws[:2], part))
            part.of(ids).copy_(_perturbed(logits, _draw(draws[2:], part)).argmax(-1))
            if hard:
                part.of(decoded).copy_(F.embedding(z.argmax(-1), w_out))
            else:
                part.of(decoded).copy_(z.to(dtype) @ w_out)
        ctx.mark_non_differentiable(ids)
        return whole_output(decoded), ids

    @staticmethod
    @first_order(_NAME)
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        features, to_logits, bias, from_tokens, *draws = ctx.saved_tensors
        batch_size, num_tokens, _ = features.shape
        layers = _Layers(features, to_logits, bias, ctx.dtype)
        w_in, w_out, grad = layers.weight, from_tokens.to(ctx.dtype), grad.to(ctx.dtype)
        wide = layers.wide
        grad_features = torch.empty_like(features)
        grad_to_logits = torch.zeros_like(to_logits, dtype=wide)
        grad_bias = torch.zeros_like(bias, dtype=wide)
        grad_from_tokens = torch.zeros_like(from_tokens, dtype=wide).t().contiguous()
        for part in parts(batch_size, num_tokens, len(bias), features.device):
            z = _relaxed(layers.logits(part), ctx.tau, _draw(draws[:2], part))
            grad_rows = part.of(grad)
            grad_z = (grad_rows @ w_out).to(wide)
            grad_logits = torch.ops.aten._softmax_backward_data(grad_z, z, -1, wide) / ctx.tau
            grad_rows = grad_rows.flatten(0, 1)
            if ctx.hard:
                grad_from_tokens.index_add_(0, z.argmax(-1).flatten(), grad_rows.to(wide))
            else:
                add_product(grad_from_tokens, z.flatten(0, 1).to(ctx.dtype).t(), grad_rows)
            grad_bias += grad_logits.sum((0, 1))
            grad_logits = grad_logits.to(ctx.dtype)
            part.of(grad_features).copy_(grad_logits @ w_in)
            inputs = part.of(layers.features).flatten(0, 1)
            add_product(grad_to_logits, grad_logits.flatten(0, 1).t(), inputs)
        return (
            grad_features,
            grad_to_logits.to(to_logits.dtype),
            grad_bias.to(bias.dtype),
            grad_from_tokens.t().to(from_tokens.dtype),
            *[None] * (3 + len(draws)),
        )


class _Layers:
    """The logits of any part of the features."""

    def __init__(self, features: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.wide = wide_dtype(features)
        self.features, self.weight = features.to(dtype), weight.to(dtype)
        self.bias = bias.to(self.wide)

    def logits(self, part: Part) -> Tensor:
        return (part.of(self.features) @ self.weight.t()).to(self.wide) + self.bias


def _draw(draw: Sequence[Tensor], part: Part) -> Draw | None:
    return Draw(part.of(draw[0]), part.samples_of(draw[1])) if draw else None


def _perturbed(logits: Tensor, draw: Draw | None) -> Tensor:
    if draw is None:
        return logits
    noise = draw.gumbel(logits.dtype)
    return noise + logits if transforms_active() else noise.add_(logits)


def _relaxed(logits: Tensor, tau: float | Tensor, draw: Draw | None) -> Tensor:
    return torch.softmax(_perturbed(logits, draw) / tau, dim=-1)
