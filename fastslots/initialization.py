"""Layers with their initial values: those of the public SLATE code (github.com/singhgautam/slate)."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d)


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


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution to ``size / stride`` with uniform Xavier weights and a zero bias, as Keras'."""
    layer = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=(kernel_size - stride + 1) // 2
    )
    return _as_keras(layer)


def conv_transpose(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.ConvTranspose2d:
    """A transposed convolution of odd kernel to ``size * stride``, initialised as `conv`."""
    layer = nn.ConvTranspose2d(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding=kernel_size // 2,
        output_padding=stride - 1,
    )
    return _as_keras(layer)


def gru_cell(input_size: int, hidden_size: int) -> nn.GRUCell:
    """A GRU cell with Xavier input weights, orthogonal hidden weights and zero biases."""
    cell = nn.GRUCell(input_size, hidden_size)
    nn.init.xavier_uniform_(cell.weight_ih)
    _orthogonal_(cell.weight_hh)
    nn.init.zeros_(cell.bias_ih)
    nn.init.zeros_(cell.bias_hh)
    return cell


def _as_keras(layer: Layer) -> Layer:
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def _orthogonal_(weight: Tensor) -> None:
    """`nn.init.orthogonal_` in any dtype: PyTorch factorises no matrix of half precision."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    weight.copy_(nn.init.orthogonal_(torch.empty_like(weight, dtype=wide)))
