"""The cross-entropy of a linear layer's outputs, which are never all there at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslots.models.precision import product_dtype, wide_dtype, without_autocast
from fastslots.models.slate.chunks import add_product, parts
from fastslots_kernels.derivatives import (
    empty_function_of,
    first_order,
    is_exporting,
    refuse_transforms,
)
from fastslots_kernels.layers import why_called

_NAME = "the cross-entropy without logits"


def linear_cross_entropy(
    features: Tensor, weight: Tensor, ids: Tensor, backend: str = "auto"
) -> Tensor:
    """Cross-entropy of tokens given the features that predict them, summed.

    Equals ``F.cross_entropy(features @ weight.T, ids, reduction="sum")``. The logits ``[B, N, V]`` are
    computed part by part. As the loss is a number, so is what the backward pass multiplies with: the
    gradients are made in the forward pass, while a part's logits are there, and nothing is computed twice.

    Args:
        features: ``[B, N, D]``.
        weight: ``[V, D]``.
        ids: Tokens in [0, V), ``[B, N]`` int64.
        backend: ``"reference"`` makes all logits at once, and has derivatives of every order.

    Returns:
        Nats, scalar; float32, or float64 for float64.
    """
    dtype = product_dtype(features)
    with without_autocast(features):
        if backend == "reference" or is_exporting():
            logits = F.linear(features.to(dtype), weight.to(dtype)).to(wide_dtype(features))
            return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum")
        refuse_transforms(_NAME, (features, weight))
        sources = empty_function_of(features, weight)
        total: Tensor = _LinearCrossEntropy.apply(
            features, weight, ids, dtype, torch.is_grad_enabled(), sources
        )
    return total


def token_cross_entropy(features: Tensor, out: nn.Linear, ids: Tensor, backend: str) -> Tensor:
    """`linear_cross_entropy` under a layer; one that must be called makes all logits at once."""
    if why_called(out, nn.Linear, bias=False) is None:
        return linear_cross_entropy(features, out.weight, ids, backend)
    logits = out(features)
    with without_autocast(logits):
        logits = logits.to(wide_dtype(logits)).flatten(0, 1)
        return F.cross_entropy(logits, ids.flatten(), reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        ids: Tensor,
        dtype: torch.dtype,
        tracked: bool,
        sources: Tensor,
    ) -> Tensor:
        batch_size, num_tokens, _ = features.shape
        wide = wide_dtype(features)
        x, w = features.to(dtype), weight.to(dtype)
        total = torch.zeros((), dtype=wide, device=x.device)
        tracked = tracked and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])
        grad_features = torch.empty_like(features) if tracked else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if tracked else None
        for part in parts(batch_size, num_tokens, len(weight), x.device):
            inputs, targets = part.of(x).flatten(0, 1), part.of(ids).reshape(-1, 1)
            log_p = torch.log_softmax((inputs @ w.t()).to(wide), dim=-1)
            total = total - log_p.gather(1, targets).sum()
            if grad_features is None or grad_weight is None:
                continue
            grad_logits = log_p.exp_().scatter_add_(
                1, targets, torch.full_like(targets, -1, dtype=wide)
            )
            grad_logits = grad_logits.to(dtype)
            part.of(grad_features).copy_((grad_logits @ w).view_as(part.of(features)))
            add_product(grad_weight, grad_logits.t(), inputs)
        if grad_features is not None and grad_weight is not None:
            ctx.save_for_backward(grad_features, grad_weight.to(weight.dtype), sources)
        return total

    @staticmethod
    @first_order(_NAME)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_features, grad_weight, _ = ctx.saved_tensors
        scaled = (grad.to(saved.dtype) * saved for saved in (grad_features, grad_weight))
        return *scaled, None, None, None, None
