"""The parts of a step: normalise, make the slots' keys, attend, update the slots."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslots_kernels.autocast import autocast_dtype
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


def normalize(inputs: Tensor, mask: Tensor | None, eps: float, dtype: torch.dtype) -> Normalized:
    """``[B, N, C]`` inputs normalised over C; masked ones are replaced by zeros first."""
    if mask is not None:
        inputs = inputs.masked_fill(~mask.unsqueeze(-1), 0)
    # Written out: on a CPU, PyTorch's LayerNorm without affine is two to three times as slow.
    x = inputs.to(compute_dtype(inputs))
    values = x - x.mean(-1, keepdim=True)
    values -= values.mean(-1, keepdim=True)  # what rounding left of a large mean
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


def attend(
    x: Tensor,
    m: Tensor,
    c: Tensor,
    mask: Tensor | None,
    epsilon: float,
    attn: Tensor,
    scratch: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sums over the normalised inputs ``x``, ``[B, N, C]``, under a softmax over the slots.

    Returns ``U`` ``[B, H K, C]`` and ``Z`` ``[B, H K]``, and writes the softmax to ``attn``. It works in
    given memory, ``attn`` and ``scratch``, both ``[B, H K, N]``: new memory costs a page fault every
    4 KiB, on a CPU more than the arithmetic.
    """
    assign(tile_bmm(m, x.mT, out=scratch), c, mask, attn, scratch)
    weights = add_epsilon(attn, mask, epsilon, out=scratch)
    return tile_bmm(weights, x), weights.sum(-1)


def assign(products: Tensor, c: Tensor, mask: Tensor | None, attn: Tensor, scratch: Tensor) -> None:
    """Writes the softmax over the slots of ``products + c`` to ``attn``; 0 at masked inputs."""
    torch.softmax(torch.add(products, c.unsqueeze(-1), out=scratch), dim=1, out=attn)
    if mask is not None:
        attn.masked_fill_(~mask.unsqueeze(1), 0)


def add_epsilon(attn: Tensor, mask: Tensor | None, epsilon: float, out: Tensor) -> Tensor:
    """``P + epsilon`` where an input is valid, 0 elsewhere."""
    torch.add(attn, epsilon, out=out)
    return out if mask is None else out.masked_fill_(~mask.unsqueeze(1), 0)


def update_slots(
    slots: Tensor, sums: Tensor, total: Tensor, w: SlotAttentionWeights, num_heads: int
) -> Tensor:
    """The new slots ``[B, K, D]`` from ``U`` (`sums`) and ``Z`` (`total`)."""
    b, num_slots, d = slots.shape
    averaged, _, _ = weighted_mean(sums, total, w)
    updates = project_values(averaged, w, num_heads)
    new = gru(updates, slots.reshape(b * num_slots, d), w).output
    hidden = F.layer_norm(new, (d,), w.norm_mlp_weight, w.norm_mlp_bias, w.norm_mlp_eps)
    hidden = F.relu(F.linear(hidden, w.mlp_0_weight, w.mlp_0_bias))
    change = F.linear(hidden, w.mlp_2_weight, w.mlp_2_bias)
    # The sum is last: what leaves a node of the graph as a view could not be changed in place.
    return new.view(b, num_slots, d) + change.view(b, num_slots, d)


def weighted_mean(
    sums: Tensor, total: Tensor, w: SlotAttentionWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """``ū = U / Z ∘ γ + β``, with ``U / Z`` and the divisor, all for ``[B, H K]`` virtual slots.

    Z is 0 only for an image without a valid input (or where epsilon is 0 and a softmax underflows):
    its updates are 0, the shift β included.
    """
    total = total.unsqueeze(-1)
    divisor = total.clamp_min(torch.finfo(total.dtype).tiny)
    mean = sums / divisor
    averaged = torch.addcmul(w.norm_inputs_bias, mean, w.norm_inputs_weight)
    return averaged.mul_(total.sign()), mean, divisor


def project_values(averaged: Tensor, w: SlotAttentionWeights, num_heads: int) -> Tensor:
    """Applies the value projection to the weighted means: ``[B, H K, C]`` to ``[B K, D]``."""
    by_head = from_virtual_slots(averaged, num_heads)
    return merge_heads(torch.bmm(by_head, per_head(w.project_v, num_heads).mT))


class Gates(NamedTuple):
    """A GRU step with its intermediate values, all ``[B K, D]``."""

    reset: Tensor
    keep: Tensor
    new: Tensor
    from_hidden: Tensor  # what the reset gate multiplies
    output: Tensor


def gru(updates: Tensor, slots: Tensor, w: SlotAttentionWeights) -> Gates:
    """`torch.gru_cell`, written out: on a CPU in little more than half its time."""
    d = slots.shape[1]
    from_updates = F.linear(updates, w.gru_weight_ih, w.gru_bias_ih)
    from_slots = F.linear(slots, w.gru_weight_hh, w.gru_bias_hh)
    gates = (from_updates[:, : 2 * d] + from_slots[:, : 2 * d]).sigmoid_()
    reset, keep, from_hidden = gates[:, :d], gates[:, d:], from_slots[:, 2 * d :]
    new = torch.addcmul(from_updates[:, 2 * d :], reset, from_hidden).tanh_()
    return Gates(reset, keep, new, from_hidden, torch.lerp(new, slots, keep))


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


def tile_bmm(a: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """``a @ x`` in the dtype of the inputs ``x``, returned in the dtype of ``a``."""
    if a.dtype == x.dtype:
        return torch.bmm(a, x) if out is None else torch.bmm(a, x, out=out)
    if x.is_cuda:
        product = torch.bmm(a.to(x.dtype), x, out_dtype=a.dtype)
    else:
        product = torch.bmm(a.to(x.dtype), x).to(a.dtype)
    return product if out is None else out.copy_(product)


def compute_dtype(inputs: Tensor) -> torch.dtype:
    """The dtype of everything but the products with the inputs."""
    return torch.float64 if inputs.dtype == torch.float64 else torch.float32


def tile_dtype(inputs: Tensor) -> torch.dtype:
    """The dtype of the products with the inputs: theirs, or autocast's; float32 in place of float16."""
    dtype = inputs.dtype
    if dtype != torch.float64:
        dtype = autocast_dtype(inputs.device) or dtype
    # Float16 holds neither a sum over many inputs, nor epsilon, nor the gradient of a slot that none chooses.
    return torch.float32 if dtype == torch.float16 else dtype
