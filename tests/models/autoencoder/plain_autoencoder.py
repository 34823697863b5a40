"""The autoencoder of Locatello et al. 2020 in plain PyTorch, written from the paper: the tests' oracle.

Functions of named tensors, ``w``, a model's parameters; pixels and patches are gone through one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslots.models.autoencoder import SlotAutoencoder, SlotAutoencoderConfig
from fastslots.noise import Noise

Weights = Mapping[str, Tensor]


class Plain(NamedTuple):
    """What comes out, with graphs; colours are in [-1, 1] where the model is sure."""

    slots: Tensor  # [B, K, D]
    attn: Tensor  # [B, N, K]
    colours: Tensor  # [B, K, C, S, S]
    masks: Tensor  # [B, K, S, S]
    mixed: Tensor  # [B, C, S, S]
    loss: Tensor
    entropy: Tensor


def plain_autoencoder(
    w: Weights, config: SlotAutoencoderConfig, image: Tensor, slots: Tensor, untracked: int = 0
) -> Plain:
    """The unrolled form on images of which [0, 1] becomes [-1, 1].

    Args:
        w: The parameters.
        config: The settings.
        image: ``[B, C, S, S]`` in [0, 1].
        slots: The initial guess.
        untracked: Steps without a graph, after which one with a graph follows; 0: all have one.
    """
    patches = config.backbone == "patches"
    target = 2 * image - 1
    inputs = _inputs(w, _features(w, config, target))
    if untracked:
        with torch.no_grad():
            for _ in range(untracked):
                slots, _ = _step(w, config, inputs, slots)
        slots, attn = _step(w, config, inputs, slots)
    else:
        for _ in range(config.num_iterations):
            slots, attn = _step(w, config, inputs, slots)
    painted = (_paint_patches if patches else _paint_pixels)(w, config, slots)
    colours, logits = painted[:, :, :-1], painted[:, :, -1]
    masks = logits.softmax(1)
    mixed = sum(masks[:, k, None] * colours[:, k] for k in range(slots.shape[1]))
    loss = (mixed - target).square().mean()
    entropy = -(masks * masks.log()).sum(1).mean()
    return Plain(slots, attn, colours, masks, mixed, loss, entropy)


def drawn_slots(model: SlotAutoencoder, keys: Tensor, w: Weights | None = None) -> Tensor:
    """The initial slots that keys stand for."""
    init, config = w or dict(model.named_parameters()), model.config
    if config.slot_init == "learned":
        return init["slot_encoder.slot_init.slot_queries"].expand(len(keys), -1, -1)
    sigma = init["slot_encoder.slot_init.slot_log_sigma"].exp()
    noise = Noise(keys).normal(config.num_slots, config.slot_size, sigma.dtype)
    return init["slot_encoder.slot_init.slot_mu"] + sigma * noise


def _features(w: Weights, config: SlotAutoencoderConfig, x: Tensor) -> Tensor:
    name, p = "encoder.convs", config.patch_size
    if config.backbone == "patches":
        x = F.conv2d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], stride=p, padding=p // 2).relu()
        others, padding = range(1, 3), 1
    else:
        others, padding = range(4), 2
    for i in others:
        x = F.conv2d(x, w[f"{name}.{i}.weight"], w[f"{name}.{i}.bias"], padding=padding).relu()
    side = x.shape[-1]
    places = [(row, column) for row in range(side) for column in range(side)]
    positions = _positions(w, "encoder", side)
    return torch.stack([x[:, :, r, c] + positions[r][c] for r, c in places], 1)


def _positions(w: Weights, part: str, side: int) -> list[list[Tensor]]:
    """A vector for every place of a grid."""
    name = f"{part}.positions.dense"
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]

    def position(row: int, column: int) -> Tensor:
        down, right = row / (side - 1), column / (side - 1)
        return weight @ weight.new_tensor([down, right, 1 - down, 1 - right]) + bias

    return [[position(row, column) for column in range(side)] for row in range(side)]


def _inputs(w: Weights, features: Tensor) -> Tensor:
    return _mlp(w, "slot_encoder.mlp", _norm(w, "slot_encoder.layer_norm", features))


def _step(
    w: Weights, config: SlotAutoencoderConfig, inputs: Tensor, slots: Tensor
) -> tuple[Tensor, Tensor]:
    """Algorithm 1, a single head."""
    name = "slot_encoder.slot_attention"
    x = _norm(w, f"{name}.norm_inputs", inputs)
    k, v = (torch.einsum("dc,bnc->bnd", w[f"{name}.project_{n}.weight"], x) for n in "kv")
    q = torch.einsum(
        "de,bke->bkd", w[f"{name}.project_q.weight"], _norm(w, f"{name}.norm_slots", slots)
    )
    attn = (torch.einsum("bnd,bkd->bnk", k, q) / config.slot_size**0.5).softmax(2)
    weighted = attn + config.epsilon
    weighted = weighted / weighted.sum(1, keepdim=True)
    slots = _gru(w, f"{name}.gru", torch.einsum("bnk,bnd->bkd", weighted, v), slots)
    return slots + _mlp(w, f"{name}.mlp", _norm(w, f"{name}.norm_mlp", slots)), attn


def _gru(w: Weights, name: str, x: Tensor, h: Tensor) -> Tensor:
    from_x = F.linear(x, w[f"{name}.weight_ih"], w[f"{name}.bias_ih"]).chunk(3, -1)
    from_h = F.linear(h, w[f"{name}.weight_hh"], w[f"{name}.bias_hh"]).chunk(3, -1)
    reset, update = (torch.sigmoid(a + b) for a, b in zip(from_x[:2], from_h[:2], strict=True))
    new = torch.tanh(from_x[2] + reset * from_h[2])
    return (1 - update) * new + update * h


def _mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    hidden = F.linear(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"]).relu()
    return F.linear(hidden, w[f"{name}.2.weight"], w[f"{name}.2.bias"])


def _norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def _paint_pixels(w: Weights, config: SlotAutoencoderConfig, slots: Tensor) -> Tensor:
    """Every slot on an 8 x 8 grid, doubled until it is an image, ``[B, K, C + 1, S, S]``."""
    positions = torch.stack([torch.stack(row) for row in _positions(w, "decoder", 8)])
    painted = []
    for k in range(slots.shape[1]):
        x = (slots[:, k, None, None] + positions).permute(0, 3, 1, 2)
        layer, side = 0, 8
        while side < config.image_size:
            x = F.conv_transpose2d(x, *_layer(w, layer), stride=2, padding=2, output_padding=1)
            x, layer, side = x.relu(), layer + 1, 2 * side
        x = F.conv_transpose2d(x, *_layer(w, layer), padding=2).relu()
        out = w["decoder.out.weight"], w["decoder.out.bias"]
        painted.append(F.conv_transpose2d(x, *out, padding=1))
    return torch.stack(painted, 1)


def _layer(w: Weights, index: int) -> tuple[Tensor, Tensor]:
    return w[f"decoder.convs.{index}.weight"], w[f"decoder.convs.{index}.bias"]


def _paint_patches(w: Weights, config: SlotAutoencoderConfig, slots: Tensor) -> Tensor:
    """Every patch by itself, put where it belongs, ``[B, K, C + 1, S, S]``."""
    p, channels = config.patch_size, config.image_channels + 1
    side = config.image_size // p
    positions, rows = _positions(w, "decoder", side), []
    for r in range(side):
        row = []
        for c in range(side):
            x = (F.linear(slots, w["decoder.slot.weight"]) + positions[r][c]).relu()
            for i in range(2):
                x = F.linear(x, w[f"decoder.mlp.{i}.weight"], w[f"decoder.mlp.{i}.bias"]).relu()
            x = F.linear(x, w["decoder.out.weight"], w["decoder.out.bias"])
            row.append(x.unflatten(-1, (channels, p, p)))
        rows.append(torch.cat(row, -1))
    return torch.cat(rows, -2)
