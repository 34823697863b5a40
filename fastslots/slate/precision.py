"""What runs in which dtype under autocast: products in autocast's, everything between them in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products of `x`: its own, or autocast's. Float64 stays."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums, softmax and noise: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def without_autocast(x: Tensor) -> torch.autocast:
    """A context in which every operation keeps the dtype it is given."""
    return torch.autocast(x.device.type, enabled=False)
