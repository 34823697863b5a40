"""What runs in which dtype under autocast: products in autocast's, everything between them in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from fastslots_kernels import autocast


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products of `x`: its own, or autocast's. Float64 stays."""
    return x.dtype if x.dtype == torch.float64 else autocast.autocast_dtype(x.device) or x.dtype


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums, softmax and noise: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which every operation keeps the dtype it is given."""
    return autocast.without_autocast(x.device)


def fast_precision() -> str:
    """The recipe's precision that this CPU is fastest in: ``"bf16"`` where it has instructions for it."""
    capabilities = torch.cpu.get_capabilities()
    fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16" if fast else "float32"
