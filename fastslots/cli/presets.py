"""The settings that ``fastslots train`` takes for a device."""

from __future__ import annotations

from typing import Any

import torch

from fastslots_kernels.checks import check_choice

# A GPU gets the paper's settings, the defaults. These are sized for two CPU cores and a few minutes, which
# decide everything: small images without a mirror, and tokens hot at first, so that more of them are used.
CPU_SETTINGS: dict[str, dict[str, Any]] = {
    "model": {
        "image_size": 32,
        "vocab_size": 64,
        "d_model": 64,
        "num_decoder_blocks": 2,
        "num_decoder_heads": 4,
        "dropout": 0.0,
        "slot_size": 64,
        "mlp_hidden_size": 64,
        "num_iterations": 3,
    },
    "recipe": {
        "steps": 2_400,
        "batch_size": 16,
        "lr_dvae": 3e-3,
        "lr_main": 1e-3,
        "warmup_steps": 200,
        "tau_start": 2.0,
        "tau_steps": 1_200,
        "validate_every": 800,
        "validation_images": 128,
        "log_every": 100,
    },
    "data": {"num_scenes": 2_000, "max_objects": 4, "mirror": False, "cache": "runs/scene-cache"},
}


def preset(settings: str, device: torch.device) -> dict[str, dict[str, Any]]:
    """What differs from the defaults, by group.

    Args:
        settings: ``"cpu"``, ``"gpu"`` or ``"auto"``, by the device.
        device: That is trained on.

    Raises:
        ValueError: If `settings` is none of these.
    """
    check_choice("settings", settings, ("auto", "cpu", "gpu"))
    if settings == "cpu" or (settings == "auto" and device.type == "cpu"):
        return CPU_SETTINGS
    return {"model": {}, "recipe": {}, "data": {}}
