"""Causal attention with dropout, in parts: the attention ``[B, H, N, N]`` is never whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from fastslots.noise import Draw, Noise
from fastslots.slate.chunks import Part, parts, whole_output
from fastslots.slate.precision import product_dtype, without_autocast


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, noise: Noise | None
) -> Tensor:
    """Each position reads those up to itself.

    Without dropout this is PyTorch's fused attention, whose own dropout cannot follow from a sample's key.
    With dropout, parts of the attention are computed one after the other, each up to the last key that
    its queries may read, and again in the backward pass with the same dropout. The algebra is
    FlashAttention's (Dao et al. 2022).

    Args:
        q: Queries, ``[B, H, N, D]``.
        k: Keys, ``[B, H, N, D]``.
        v: Values, ``[B, H, N, D]``.
        dropout: Probability that an entry of the attention is dropped.
        noise: Decides which; None: none is.

    Returns:
        ``[B, H, N, D]``.
    """
    if noise is None or dropout == 0:
        return scaled_dot_product_attention(q, k, v, is_causal=True)
    _, num_heads, length, _ = q.shape
    draw = noise.draw(num_heads * length, length)
    dtype = product_dtype(q)
    with without_autocast(q):
        output: Tensor = _CausalAttention.apply(q, k, v, draw.rows, draw.columns, dropout, dtype)
    return output


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rows: Tensor,
        columns: Tensor,
        dropout: float,
        dtype: torch.dtype,
    ) -> Tensor:
        q, k, v = (x.to(dtype).contiguous() for x in (q, k, v))
        output = torch.empty_like(q)
        for part in _parts(q, Draw(rows, columns), dropout):
            _, kept = part.attention(q, k)
            part.queries(output).copy_(kept.to(dtype) @ part.keys(v))
        output.mul_(1 / (1 - dropout))
        ctx.save_for_backward(q, k, v, output, rows, columns)
        ctx.dropout = dropout
        return whole_output(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, rows, columns = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        # Of each query: the mean of the attention's gradient under the attention.
        mean = (grad.to(_wide(q)) * output).sum(-1, keepdim=True)
        grad = (grad * (1 / (1 - ctx.dropout))).to(q.dtype)
        for part in _parts(q, Draw(rows, columns), ctx.dropout):
            attn, kept = part.attention(q, k)
            grad_part = part.queries(grad)
            part.keys(grad_v).add_(kept.to(q.dtype).transpose(-1, -2) @ grad_part)
            # attn * (keep * grad_attn - mean), where kept = attn * keep
            grad_attn = (grad_part @ part.keys(v).transpose(-1, -2)).to(attn.dtype)
            grad_logits = kept.mul_(grad_attn).sub_(attn.mul_(part.queries(mean)))
            grad_logits = grad_logits.mul_(q.shape[-1] ** -0.5).to(q.dtype)
            part.queries(grad_q).copy_(grad_logits @ part.keys(k))
            part.keys(grad_k).add_(grad_logits.transpose(-1, -2) @ part.queries(q))
        return grad_q, grad_k, grad_v, None, None, None, None


class _Queries(NamedTuple):
    """Queries of some samples, and the keys that they may read."""

    part: Part
    draw: Draw
    dropout: float

    def queries(self, x: Tensor) -> Tensor:
        """Their entries of ``[B, H, N, D]``, a view."""
        return self.part.samples_of(x)[:, :, self.part.first_row : self.part.last_row]

    def keys(self, x: Tensor) -> Tensor:
        """The entries of ``[B, H, N, D]`` that they may read, a view."""
        return self.part.samples_of(x)[:, :, : self.part.last_row]

    def attention(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The attention ``[b, H, n, m]``, and what dropout keeps of it."""
        queries, keys = self.queries(q), self.keys(k)
        num_heads, num_queries = queries.shape[1:3]
        logits = (queries * q.shape[-1] ** -0.5 @ keys.transpose(-1, -2)).to(_wide(q))
        future = torch.full((num_queries, num_queries), float("-inf"), device=q.device).triu(1)
        logits[..., self.part.first_row :].add_(future)
        attn = torch.softmax(logits, dim=-1)
        rows = self.draw.rows.view(len(q), num_heads, -1, 1)
        columns = self.part.samples_of(self.draw.columns)[:, None, :, : self.part.last_row]
        dropped = Draw(self.queries(rows), columns).drop(self.dropout)
        return attn, attn.masked_fill(dropped, 0)


def _parts(q: Tensor, draw: Draw, dropout: float) -> Iterator[_Queries]:
    batch_size, num_heads, length, _ = q.shape
    tables = 4  # as large as the attention, that are there at a time
    for part in parts(batch_size, length, tables * num_heads * length, q.device):
        yield _Queries(part, draw, dropout)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
