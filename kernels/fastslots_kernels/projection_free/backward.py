"""The gradient of one step, everything but its arguments computed again (see kernels/README.md).

Names: ``d_x`` is the gradient of the loss with respect to ``x``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslots_kernels.projection_free.forward import (
    Gates,
    Normalized,
    SlotKeys,
    add_epsilon,
    assign,
    compute_dtype,
    from_virtual_slots,
    gru,
    merge_heads,
    normalize,
    per_head,
    project_values,
    slot_keys,
    split_heads,
    tile_bmm,
    to_virtual_slots,
    weighted_mean,
)
from fastslots_kernels.weights import SlotAttentionWeights

_Grads = dict[str, Tensor]  # by the field names of SlotAttentionWeights


def step_backward(
    inputs: Tensor,
    slots: Tensor,
    sums: Tensor,
    total: Tensor,
    weights: SlotAttentionWeights,
    d_new: Tensor | None,
    d_attn: Tensor | None,
    *,
    mask: Tensor | None,
    num_heads: int,
    epsilon: float,
    tile_dtype: torch.dtype,
    need_inputs: bool,
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """Gradients of the inputs (None if not needed), the slots and the weights, in their dtypes.

    Args:
        inputs: ``[B, N, C]``.
        slots: The slots that entered the step, ``[B, K, D]``.
        sums: ``U`` of the forward, ``[B, H K, C]``.
        total: ``Z`` of the forward, ``[B, H K]``.
        weights: Of the step.
        d_new: Of the new slots, ``[B, K, D]``, or None for zero.
        d_attn: Of the softmax, ``[B, H K, N]``, or None for zero.
        mask: As in `fastslots_kernels.slot_attention`.
        num_heads: H.
        epsilon: As in the forward.
        tile_dtype: Dtype of products with the inputs, as in the forward.
        need_inputs: Whether the inputs need a gradient.
    """
    w = weights.to(compute_dtype(inputs))
    old = slots.to(w.dtype)
    grads: _Grads = {}
    d_slots = torch.zeros_like(old)
    d_sums, d_total = torch.zeros_like(sums), torch.zeros_like(total)
    if d_new is not None:
        d_slots, d_sums, d_total = _update_backward(
            old, sums, total, w, num_heads, d_new.to(w.dtype), grads
        )
    keys = slot_keys(old, w, num_heads)
    x = normalize(inputs, mask, w.norm_inputs_eps, tile_dtype)
    d_inputs, d_m, d_c = _attend_backward(
        x, keys.m, keys.c, mask, epsilon, d_sums, d_total, d_attn, need_inputs
    )
    d_slots = d_slots.reshape(-1, w.slot_size) + _keys_backward(
        old, keys, w, num_heads, d_m, d_c, grads
    )

    tensors = weights.named_tensors()
    d_weights = [
        grads[name].to(value.dtype) if name in grads else torch.zeros_like(value)
        for name, value in tensors.items()
    ]
    if d_inputs is not None:
        d_inputs = d_inputs.to(inputs.dtype)
    return d_inputs, d_slots.view_as(slots).to(slots.dtype), d_weights


def _attend_backward(
    x: Normalized,
    m: Tensor,
    c: Tensor,
    mask: Tensor | None,
    epsilon: float,
    d_sums: Tensor,
    d_total: Tensor,
    d_attn: Tensor | None,
    need_inputs: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of the inputs, of ``m`` and of ``c``. Takes the memory of ``x.values``.

    ``dx = rstd (dx̃ - mean(dx̃) - x̃ mean(dx̃ ∘ x̃))`` with ``dx̃ = Aᵀ dU + dLᵀ m``. Both means over C
    follow from maps at hand, so that dx is x̃ scaled plus one product, made in the place of x̃.
    At masked inputs P and A are 0, and so is everything that follows from them.
    """
    values, virtual = x.values, m.shape[1]
    products = tile_bmm(m, values.mT)  # x̃ · m
    sums_products = tile_bmm(d_sums, values.mT)  # x̃ · dU
    attn, scratch = torch.empty_like(products), torch.empty_like(products)
    assign(products, c, mask, attn, scratch)
    # Rows: A, dL, and the mean of dx̃ over C.
    maps = products.new_empty(products.shape[0], 2 * virtual + 1, products.shape[2])
    weights, d_logits, mean = maps[:, :virtual], maps[:, virtual:-1], maps[:, -1:]
    d_weights = torch.add(sums_products, d_total.unsqueeze(-1), out=scratch)
    if d_attn is not None:
        d_weights += d_attn
        if mask is not None:  # where a loss may have made it NaN, as that of the logarithm of 0
            d_weights.masked_fill_(~mask.unsqueeze(1), 0)
    d_weights -= (d_weights * attn).sum(1, keepdim=True)
    d_logits.copy_(d_weights).mul_(attn)
    d_m, d_c = tile_bmm(d_logits, values), d_logits.sum(-1)
    if not need_inputs:
        return None, d_m, d_c

    weights.copy_(add_epsilon(attn, mask, epsilon, out=scratch))
    rows = torch.cat([d_sums, m, torch.ones_like(m[:, :1])], dim=1)
    along = sums_products.mul_(weights).sum(1) + products.mul_(d_logits).sum(1)
    scale = along.mul_(x.rstd).div_(-values.shape[-1]).unsqueeze(-1)
    mean.copy_(torch.bmm(rows[:, :-1].mean(-1).unsqueeze(1).neg(), maps[:, :-1]))
    maps *= x.rstd.unsqueeze(1)
    if values.dtype == maps.dtype:
        return values.mul_(scale).baddbmm_(maps.mT, rows), d_m, d_c
    return values * scale + tile_bmm(maps.mT, rows.to(values.dtype)), d_m, d_c


def _update_backward(
    slots: Tensor,
    sums: Tensor,
    total: Tensor,
    w: SlotAttentionWeights,
    num_heads: int,
    d_new: Tensor,
    grads: _Grads,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the old slots ``[B K, D]``, of ``U`` and of ``Z``; adds those of the weights."""
    b, num_slots, d = slots.shape
    slots, d_new = slots.reshape(b * num_slots, d), d_new.reshape(b * num_slots, d)
    averaged, mean, divisor = weighted_mean(sums, total, w)
    updates = project_values(averaged, w, num_heads)
    gates = gru(updates, slots, w)
    normed, norm_mean, norm_rstd = torch.native_layer_norm(
        gates.output, (d,), w.norm_mlp_weight, w.norm_mlp_bias, w.norm_mlp_eps
    )
    hidden = F.relu(F.linear(normed, w.mlp_0_weight, w.mlp_0_bias))

    d_hidden = (d_new @ w.mlp_2_weight) * (hidden > 0)
    grads["mlp_2_weight"], grads["mlp_2_bias"] = d_new.T @ hidden, d_new.sum(0)
    grads["mlp_0_weight"], grads["mlp_0_bias"] = d_hidden.T @ normed, d_hidden.sum(0)
    d_output, grads["norm_mlp_weight"], grads["norm_mlp_bias"] = _norm_backward(
        d_hidden @ w.mlp_0_weight,
        gates.output,
        norm_mean,
        norm_rstd,
        w.norm_mlp_weight,
        w.norm_mlp_bias,
    )
    d_updates, d_slots = _gru_backward(updates, slots, gates, w, d_output + d_new, grads)

    d_by_head = split_heads(d_updates, num_heads)
    by_head = from_virtual_slots(averaged, num_heads)
    grads["project_v"] = torch.bmm(d_by_head.mT, by_head).view_as(w.project_v)
    d_averaged = torch.bmm(d_by_head, per_head(w.project_v, num_heads))
    d_averaged = to_virtual_slots(d_averaged, b, num_slots) * total.sign().unsqueeze(-1)
    grads["norm_inputs_weight"] = (d_averaged * mean).sum((0, 1))
    grads["norm_inputs_bias"] = d_averaged.sum((0, 1))
    d_sums = d_averaged * w.norm_inputs_weight / divisor
    return d_slots, d_sums, -(d_sums * mean).sum(-1)


def _gru_backward(
    updates: Tensor,
    slots: Tensor,
    gates: Gates,
    w: SlotAttentionWeights,
    d_output: Tensor,
    grads: _Grads,
) -> tuple[Tensor, Tensor]:
    """Gradients of the updates and of the old slots, ``[B K, D]``; adds those of the weights."""
    reset, keep, new, from_hidden, _ = gates
    d_new = d_output * (1 - keep) * (1 - new * new)
    d_keep = d_output * (slots - new) * keep * (1 - keep)
    d_reset = d_new * from_hidden * reset * (1 - reset)
    d_input_gates = torch.cat([d_reset, d_keep, d_new], dim=1)
    d_hidden_gates = torch.cat([d_reset, d_keep, d_new * reset], dim=1)
    grads["gru_weight_ih"], grads["gru_bias_ih"] = d_input_gates.T @ updates, d_input_gates.sum(0)
    grads["gru_weight_hh"], grads["gru_bias_hh"] = d_hidden_gates.T @ slots, d_hidden_gates.sum(0)
    return d_input_gates @ w.gru_weight_ih, d_output * keep + d_hidden_gates @ w.gru_weight_hh


def _keys_backward(
    slots: Tensor,
    keys: SlotKeys,
    w: SlotAttentionWeights,
    num_heads: int,
    d_m: Tensor,
    d_c: Tensor,
    grads: _Grads,
) -> Tensor:
    """Gradient of the slots ``[B K, D]`` through the logits; adds those of the weights."""
    b, num_slots, d = slots.shape
    _add(grads, "norm_inputs_weight", (d_m * keys.unscaled).sum((0, 1)))
    _add(grads, "norm_inputs_bias", (d_c.unsqueeze(-1) * keys.unscaled).sum((0, 1)))
    d_unscaled = d_m * w.norm_inputs_weight + d_c.unsqueeze(-1) * w.norm_inputs_bias
    d_by_head = from_virtual_slots(d_unscaled, num_heads)
    grads["project_k"] = torch.bmm(keys.q.mT, d_by_head).view_as(w.project_k)
    d_q = merge_heads(torch.bmm(d_by_head, per_head(w.project_k, num_heads).mT))
    d_q = d_q * (d // num_heads) ** -0.5
    grads["project_q"] = d_q.T @ keys.normed
    d_slots, grads["norm_slots_weight"], grads["norm_slots_bias"] = _norm_backward(
        d_q @ w.project_q,
        slots.reshape(b * num_slots, d),
        keys.mean,
        keys.rstd,
        w.norm_slots_weight,
        w.norm_slots_bias,
    )
    return d_slots


def _norm_backward(
    d_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a LayerNorm's input, scale and shift."""
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        d_out, x, x.shape[-1:], mean, rstd, weight, bias, [True, True, True]
    )
    return grads


def _add(grads: _Grads, name: str, value: Tensor) -> None:
    grads[name] = grads[name] + value if name in grads else value
