"""Causal attention with dropout: the attention ``[B, H, N, N]`` is never whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastslots.models.precision import product_dtype, wide_dtype, without_autocast
from fastslots.models.slate.chunks import Part, parts, whole_output
from fastslots.noise import Draw, Noise
from fastslots_kernels import causal
from fastslots_kernels.derivatives import first_order, refuse_transforms

_NAME = "causal attention in parts"


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float,
    noise: Noise | None,
    backend: str = "auto",
) -> Tensor:
    """Each position reads those up to itself.

    Without dropout this is PyTorch's fused attention, whose own dropout cannot follow from a sample's key.
    With dropout it is made by kernels of ours, or in parts: these are computed one after the other, each up
    to the last key that its queries may read, and again in the backward pass with the same dropout. The
    algebra is FlashAttention's (Dao et al. 2022).

    Args:
        q: Queries, ``[B, H, N, D]``.
        k: Keys, ``[B, H, N, D]``.
        v: Values, ``[B, H, N, D]``.
        dropout: Probability that an entry of the attention is dropped.
        noise: Decides which; None: none is.
        backend: ``"triton"`` for the kernels, ``"torch"`` for parts, ``"auto"`` for the kernels where CUDA
            tensors fit them; ``"reference"`` makes the whole attention, and has derivatives of every order.
            All drop the same entries.

    Returns:
        ``[B, H, N, D]``.

    Raises:
        ValueError: If `backend` is ``"triton"`` and the kernels cannot run.
    """
    draw = None
    if noise is not None and dropout > 0:
        draw = noise.draw(q.shape[1] * q.shape[2], q.shape[2])
    if backend == "reference":
        return _whole_attention(q, k, v, dropout, draw)
    refuse_transforms(_NAME, (q, k, v))
    if draw is None:
        return scaled_dot_product_attention(q, k, v, is_causal=True)
    _, num_heads, length, _ = q.shape
    q, k, v = (x.to(product_dtype(x)) for x in (q, k, v))
    output: Tensor
    with without_autocast(q):
        if not _takes_kernels(q, backend):
            output = _CausalAttention.apply(q, k, v, draw.rows, draw.columns, dropout)
            return output
        flat = [x.transpose(1, 2).flatten(2) for x in (q, k, v)]
        hashes = draw.rows.flatten(1), draw.columns.flatten(1)
        output = causal.causal_attention(*flat, *hashes, num_heads, dropout)[0]
    return output.view(len(q), length, num_heads, q.shape[3]).transpose(1, 2)


def _takes_kernels(q: Tensor, backend: str) -> bool:
    if backend == "torch" or (backend == "auto" and not q.is_cuda):
        return False
    reason = causal.why_not(q)
    if reason is not None and backend == "triton":
        raise ValueError(
            f'backend="triton" cannot make the causal attention: {reason}; take "auto" or "torch"'
        )
    return reason is None


def _whole_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, draw: Draw | None) -> Tensor:
    """`causal_attention` in plain PyTorch, without parts."""
    q, k, v = (x.to(product_dtype(x)) for x in (q, k, v))
    with without_autocast(q):
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        attn = torch.softmax(logits.masked_fill(future, -torch.inf), dim=-1, dtype=wide_dtype(q))
        if draw is not None:
            dropped = draw.drop(dropout).view(attn.shape)
            attn = attn.masked_fill(dropped, 0) * (1 / (1 - dropout))
        return attn.to(q.dtype) @ v


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
    ) -> Tensor:
        q, k, v = (x.contiguous() for x in (q, k, v))
        output = torch.empty_like(q)
        for part in _parts(q, Draw(rows, columns), dropout):
            attn = torch.softmax(part.logits(q, k), dim=-1)  # rounded at its end alone
            part.queries(output).copy_(attn.masked_fill_(part.dropped(), 0) @ part.keys(v))
        output.mul_(1 / (1 - dropout))
        ctx.save_for_backward(q, k, v, output, rows, columns)
        ctx.dropout = dropout
        return whole_output(output)

    @staticmethod
    @first_order(_NAME)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, output, rows, columns = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        # Of each query: the mean of the attention's gradient under the attention.
        mean = (grad.to(wide_dtype(q)) * output).sum(-1, keepdim=True)
        grad = (grad * (1 / (1 - ctx.dropout))).to(q.dtype)
        scale = q.shape[-1] ** -0.5
        for part in _parts(q, Draw(rows, columns), ctx.dropout):
            attn = torch.softmax(part.logits(q, k), dim=-1, dtype=wide_dtype(q))
            kept = attn.masked_fill(part.dropped(), 0)
            grad_part = part.queries(grad)
            part.keys(grad_v).add_(kept.to(q.dtype).transpose(-1, -2) @ grad_part)
            # attn * (keep * grad_attn - mean), where kept = attn * keep
            kept.mul_(grad_part @ part.keys(v).transpose(-1, -2))
            grad_logits = kept.addcmul_(attn, part.queries(mean), value=-1).to(q.dtype)
            part.queries(grad_q).copy_(grad_logits @ part.keys(k))
            part.keys(grad_k).add_(grad_logits.transpose(-1, -2) @ part.queries(q))
        grad_q, grad_k = grad_q.mul_(scale), grad_k.mul_(scale)
        return grad_q, grad_k, grad_v, None, None, None


class _Queries(NamedTuple):
    """Queries of some samples, and the keys that they may read."""

    part: Part
    draw: Draw
    dropout: float
    num_heads: int

    def queries(self, x: Tensor) -> Tensor:
        """Their entries of ``[B, H, N, D]``, a view."""
        return self.part.samples_of(x)[:, :, self.part.first_row : self.part.last_row]

    def keys(self, x: Tensor) -> Tensor:
        """The entries of ``[B, H, N, D]`` that they may read, a view."""
        return self.part.samples_of(x)[:, :, : self.part.last_row]

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """``[b, H, n, m]``, -inf where a query must not look; dtype of `q`."""
        queries, keys = self.queries(q), self.keys(k)
        num_queries = queries.shape[2]
        logits: Tensor = queries * q.shape[-1] ** -0.5 @ keys.transpose(-1, -2)
        future = torch.full(
            (num_queries, num_queries), float("-inf"), dtype=q.dtype, device=q.device
        ).triu(1)
        logits[..., self.part.first_row :].add_(future)
        return logits

    def dropped(self) -> Tensor:
        """Which of them dropout takes away, ``[b, H, n, m]`` bool."""
        rows = self.draw.rows.view(len(self.draw.rows), self.num_heads, -1, 1)
        columns = self.part.samples_of(self.draw.columns)[:, None, :, : self.part.last_row]
        return Draw(self.queries(rows), columns).drop(self.dropout)


def _parts(q: Tensor, draw: Draw, dropout: float) -> Iterator[_Queries]:
    batch_size, num_heads, length, _ = q.shape
    tables = 4  # as large as the attention, that are there at a time
    for part in parts(batch_size, length, tables * num_heads * length, q.device):
        yield _Queries(part, draw, dropout, num_heads)
