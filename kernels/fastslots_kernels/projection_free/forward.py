"""The parts of a step: normalise, make the slots' keys, attend, update the slots."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslots_kernels.weights import SlotAttentionWeights


class Normalized(NamedTuple):
    """LayerNorm without affine, and what its backward needs."""

    values: Tensor  # x̃, [B, N, C], tile dtype
    rstd: Tensor  # [B, N]


class SlotKeys(NamedTuple):
    """What the logits need of the slots, and what its backward needs. ``dh`` is D / H."""

    m: Tensor  # [B, H K, C]
    c: Tensor  # [B, H K]
    unscaled: Tensor  # [B, H K, C]: m before the scale of the inputs' LayerNorm
    q: Tensor  # [H, B K, dh]
    normed: Tensor  # [B K, D]
    mean: Tensor
    rstd: Tensor


class Maps(NamedTuple):
    """What a pass over the inputs makes, all of it, for the backward."""

    products: Tensor  # x̃ · m, the logits before c, [B, H K, N]
    attn: Tensor  # P: the softmax over heads and slots, [B, H K, N]
    weights: Tensor  # P + epsilon where an input is valid, [B, H K, N]
    sums: Tensor  # U: inputs summed under P + epsilon, [B, H K, C]
    total: Tensor  # Z: the sum of P + epsilon, [B, H K]


def normalize(inputs: Tensor, mask: Tensor | None, eps: float, dtype: torch.dtype) -> Normalized:
    """``[B, N, C]`` inputs normalised over C; masked ones are replaced by zeros first."""
    if mask is not None:
        inputs = inputs.masked_fill(~mask.unsqueeze(-1), 0)
    # Written out: on a CPU, PyTorch's LayerNorm without affine is two to three times as slow.
    x = inputs.to(compute_dtype(inputs))
    values = x - x.mean(-1, keepdim=True)
    norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    rstd = (norm * norm / x.shape[-1] + eps).rsqrt()
    return Normalized(values.mul_(rstd).to(dtype), rstd.squeeze(-1))


def slot_keys(slots: Tensor, w: SlotAttentionWeights, num_heads: int) -> SlotKeys:
    """Applies the key projection to the queries: ``m[j] = Wkᵀ q[j] / √dh ∘ γ``, ``c[j] = … · β``."""
    b, num_slots, d = slots.shape
    normed, mean, rstd = torch.native_layer_norm(
        slots.reshape(b * num_slots, d),
        (d,),
        w.norm_slots_weight,
        w.norm_slots_bias,
        w.norm_slots_eps,
    )
    q = split_heads(F.linear(normed, w.project_q), num_heads) * (d // num_heads) ** -0.5
    unscaled = to_virtual_slots(torch.bmm(q, per_head(w.project_k, num_heads)), b, num_slots)
    m, c = unscaled * w.norm_inputs_weight, unscaled @ w.norm_inputs_bias
    return SlotKeys(m, c, unscaled, q, normed, mean, rstd)


def attend(x: Tensor, m: Tensor, c: Tensor, mask: Tensor | None, epsilon: float) -> Maps:
    """Softmax over the slots and sums over the normalised inputs ``x``, ``[B, N, C]``."""
    products = tile_bmm(m, x.mT)
    attn = (products + c.unsqueeze(-1)).softmax(dim=1)
    if mask is None:
        weights = attn + epsilon
    else:
        valid = mask.unsqueeze(1)
        attn = attn * valid
        weights = attn + epsilon * valid
    return Maps(products, attn, weights, tile_bmm(weights, x), weights.sum(-1))


def attend_into(
    attn: Tensor,
    scratch: Tensor,
    x: Tensor,
    m: Tensor,
    c: Tensor,
    mask: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """`attend` for ``U`` and ``Z`` alone, in given memory: ``attn`` and ``scratch``, ``[B, H K, N]``.

    New memory costs a page fault every 4 KiB, on a CPU more than the arithmetic.
    """
    if m.dtype == x.dtype:
        torch.bmm(m, x.mT, out=scratch)
    else:
        scratch.copy_(tile_bmm(m, x.mT))
    torch.softmax(scratch.add_(c.unsqueeze(-1)), dim=1, out=attn)
    if mask is None:
        weights = torch.add(attn, epsilon, out=scratch)
    else:
        valid = mask.unsqueeze(1)
        weights = torch.add(attn.mul_(valid), epsilon * valid, out=scratch)
    return tile_bmm(weights, x), weights.sum(-1)


def update_slots(
    slots: Tensor, sums: Tensor, total: Tensor, w: SlotAttentionWeights, num_heads: int
) -> Tensor:
    """The new slots ``[B, K, D]`` from ``U`` (`sums`) and ``Z`` (`total`)."""
    b, num_slots, d = slots.shape
    averaged, _, _ = weighted_mean(sums, total, w)
    updates = project_values(averaged, w, num_heads)
    new = torch.gru_cell(
        updates,
        slots.reshape(b * num_slots, d),
        w.gru_weight_ih,
        w.gru_weight_hh,
        w.gru_bias_ih,
        w.gru_bias_hh,
    )
    hidden = F.layer_norm(new, (d,), w.norm_mlp_weight, w.norm_mlp_bias, w.norm_mlp_eps)
    hidden = F.relu(F.linear(hidden, w.mlp_0_weight, w.mlp_0_bias))
    return (new + F.linear(hidden, w.mlp_2_weight, w.mlp_2_bias)).view(b, num_slots, d)


def weighted_mean(
    sums: Tensor, total: Tensor, w: SlotAttentionWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """``ū = U / Z ∘ γ + β``, with ``U / Z`` and the divisor, all for ``[B, H K]`` virtual slots.

    Z is 0 only for an image without a valid input: its updates are 0, the shift β included.
    """
    some = (total > 0).unsqueeze(-1)
    divisor = torch.where(some, total.unsqueeze(-1), 1)
    mean = sums / divisor
    return (mean * w.norm_inputs_weight + w.norm_inputs_bias) * some, mean, divisor


def project_values(averaged: Tensor, w: SlotAttentionWeights, num_heads: int) -> Tensor:
    """Applies the value projection to the weighted means: ``[B, H K, C]`` to ``[B K, D]``."""
    by_head = from_virtual_slots(averaged, num_heads)
    return merge_heads(torch.bmm(by_head, per_head(w.project_v, num_heads).mT))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[B K, H dh]`` to ``[H, B K, dh]``."""
    return x.view(x.shape[0], num_heads, x.shape[1] // num_heads).transpose(0, 1)


def merge_heads(x: Tensor) -> Tensor:
    """``[H, B K, dh]`` to ``[B K, H dh]``."""
    return x.transpose(0, 1).reshape(x.shape[1], x.shape[0] * x.shape[2])


def per_head(projection: Tensor, num_heads: int) -> Tensor:
    """``[H dh, C]`` to ``[H, dh, C]``."""
    return projection.view(num_heads, projection.shape[0] // num_heads, projection.shape[1])


def to_virtual_slots(x: Tensor, batch: int, num_slots: int) -> Tensor:
    """``[H, B K, C]`` to ``[B, H K, C]``: every pair of a head and a slot attends as a slot."""
    num_heads, _, c = x.shape
    by_image = x.view(num_heads, batch, num_slots, c).transpose(0, 1)
    return by_image.reshape(batch, num_heads * num_slots, c)


def from_virtual_slots(x: Tensor, num_heads: int) -> Tensor:
    """``[B, H K, C]`` to ``[H, B K, C]``."""
    b, virtual, c = x.shape
    by_head = x.view(b, num_heads, virtual // num_heads, c).transpose(0, 1)
    return by_head.reshape(num_heads, b * (virtual // num_heads), c)


def tile_bmm(a: Tensor, x: Tensor) -> Tensor:
    """``a @ x`` in the dtype of the inputs ``x``, returned in the dtype of the K-sized ``a``."""
    if a.dtype == x.dtype:
        return torch.bmm(a, x)
    if x.is_cuda:
        return torch.bmm(a.to(x.dtype), x, out_dtype=a.dtype)
    return torch.bmm(a.to(x.dtype), x).to(a.dtype)


def compute_dtype(inputs: Tensor) -> torch.dtype:
    """The dtype of everything but the products with the inputs."""
    return torch.float64 if inputs.dtype == torch.float64 else torch.float32


def tile_dtype(inputs: Tensor) -> torch.dtype:
    """The dtype of the products with the inputs: theirs, or autocast's."""
    device, dtype = inputs.device.type, inputs.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    # A sum over many inputs overflows float16, and CPU products have no wider output.
    return torch.float32 if device == "cpu" and dtype == torch.float16 else dtype
