"""Causal attention with dropout as an operator that autograd and torch.compile know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastslots_kernels.derivatives import first_order
from fastslots_kernels.fused import limits
from fastslots_kernels.fused.ops import on_device_of

WIDEST_HEAD = 64


def why_not(q: Tensor) -> str | None:
    """Why the kernels cannot run on queries ``[B, H, N, D]``, with the rule and the value, or None."""
    if q.shape[-1] > WIDEST_HEAD:
        return f"heads must be at most {WIDEST_HEAD} wide; got {q.shape[-1]}"
    return limits.why_not_device(q)


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of log-sum-exps: that of sharp attention is large, and what is lost of it each of its weights loses."""
    return torch.float32 if dtype.itemsize == 2 else torch.float64


@torch.library.custom_op("fastslots::causal_attention", mutates_args=())
def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, num_heads: int, dropout: float
) -> tuple[Tensor, Tensor]:
    """Each position reads those up to itself; entries whose hash is below a limit are dropped.

    Args:
        q: Queries, ``[B, N, H D]``.
        k: Keys, likewise.
        v: Values, likewise.
        rows: Hash of each row of the attention, ``[B, H N]`` int32.
        columns: Hash of each of its columns, ``[B, N]`` int32.
        num_heads: H.
        dropout: Probability that an entry is dropped, to within 2⁻³².

    Returns:
        ``[B, N, H D]``, and for the backward the log-sum-exp of each row's logits, ``[B, H N]``.
    """
    from fastslots_kernels.causal.launches import Call, forward

    with on_device_of(q):
        q, k, v, rows, columns = (x.contiguous() for x in (q, k, v, rows, columns))
        return forward(Call(q, k, v, rows, columns, num_heads, dropout))


@causal_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(rows.shape, dtype=lse_dtype(q.dtype))


@torch.library.custom_op("fastslots::causal_attention_backward", mutates_args=())
def causal_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    columns: Tensor,
    output: Tensor,
    lse: Tensor,
    grad: Tensor,
    num_heads: int,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, each ``[B, N, H D]``, from that of the output."""
    from fastslots_kernels.causal.launches import Call, backward

    with on_device_of(q):
        q, k, v, rows, columns = (x.contiguous() for x in (q, k, v, rows, columns))
        call = Call(q, k, v, rows, columns, num_heads, dropout)
        return backward(call, output.contiguous(), lse.contiguous(), grad.contiguous())


@causal_attention_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(k.shape), q.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, num_heads, dropout = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.options = num_heads, dropout
    ctx.set_materialize_grads(False)


@first_order("the fused causal attention")
def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    return *causal_attention_backward(*ctx.saved_tensors, grad, *ctx.options), *([None] * 4)


causal_attention.register_autograd(_backward, setup_context=_setup_context)
