"""Layers initialised as in the public SLATE code (github.com/singhgautam/slate)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def linear(
    in_features: int,
    out_features: int,
    *,
    bias: bool = True,
    weight_init: str = "xavier",
    gain: float = 1.0,
) -> nn.Linear:
    """A linear layer with uniform Xavier or (before a ReLU) Kaiming weights and a zero bias."""
    layer = nn.Linear(in_features, out_features, bias)
    if weight_init == "kaiming":
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    else:
        nn.init.xavier_uniform_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def gru_cell(input_size: int, hidden_size: int) -> nn.GRUCell:
    """A GRU cell with Xavier input weights, orthogonal hidden weights and zero biases."""
    cell = nn.GRUCell(input_size, hidden_size)
    nn.init.xavier_uniform_(cell.weight_ih)
    _orthogonal_(cell.weight_hh)
    nn.init.zeros_(cell.bias_ih)
    nn.init.zeros_(cell.bias_hh)
    return cell


@torch.no_grad()
def _orthogonal_(weight: Tensor) -> None:
    """`nn.init.orthogonal_` in any dtype: PyTorch factorises no matrix of half precision."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    weight.copy_(nn.init.orthogonal_(torch.empty_like(weight, dtype=wide)))
