"""Autocast on any device: the meta device has none, and PyTorch refuses to be asked."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Autocast's dtype on `device`; None where it is off."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which every operation keeps the dtype it is given."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
