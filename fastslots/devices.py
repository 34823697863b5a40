"""Which device a command runs on."""

from __future__ import annotations

import torch


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is CUDA where there is one.

    Raises:
        ValueError: If the name is no device, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N'; got {name!r}"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N'; got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device
