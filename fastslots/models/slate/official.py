"""The state dicts of the public SLATE code."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import fields
from math import isqrt
from typing import Any

from torch import Tensor

from fastslots.models.slate.config import PATCH_SIZE, SLATEConfig
from fastslots.models.state_dicts import find_entries, some

NAMES = {
    "slot_attn.slot_init.slot_mu": "slot_attn.slot_mu",
    "slot_attn.slot_init.slot_log_sigma": "slot_attn.slot_log_sigma",
}
"""The public code's names of the parameters that are named otherwise here."""

_LANDMARK = "dvae.encoder.0.m.weight"  # what every such model has
_SIZES = {
    "image_channels": (_LANDMARK, 1),
    "vocab_size": ("out.weight", 0),
    "d_model": ("out.weight", 1),
    "slot_size": ("slot_proj.weight", 1),
    "mlp_hidden_size": ("slot_attn.slot_attention.mlp.0.weight", 0),
}
_POSITIONS = "positional_encoder.pe"
_BLOCK = re.compile(r"tf_dec\.blocks\.(\d+)\.")
_CAUSAL_MASK = re.compile(r"tf_dec\.blocks\.\d+\.self_attn_mask")
_NOT_IN_SHAPES = ("num_slots", "num_iterations", "num_decoder_heads", "num_slot_heads", "gradient")

HINT = f" (sizes are read from {', '.join(sorted({n for n, _ in _SIZES.values()} | {_POSITIONS}))})"
"""Where the sizes come from: a misshaped one of these makes others look misshaped."""

ADVICE = (
    ": weights of the public SLATE code (github.com/singhgautam/slate) are read; "
    "what save_pretrained wrote loads with SLATE.from_pretrained"
)
"""What to do about entries that do not fit."""


def read_official(
    checkpoint: object, settings: Mapping[str, Any]
) -> tuple[SLATEConfig, dict[str, Tensor]]:
    """Splits a state dict of the public code into settings and the entries to keep.

    Args:
        checkpoint: As of `find_entries`.
        settings: Of ``SLATEConfig``; one left out is read from the shapes or takes its default.

    Returns:
        The settings, and the entries without the causal masks.

    Raises:
        ValueError: If there are several models, an entry that gives a size is missing or misshaped, a causal
            mask is misshaped, or a setting is unknown or contradicts the shapes.
        TypeError: If there is no mapping of names to tensors.
    """
    state = find_entries(checkpoint, _LANDMARK)
    config = _settle(settings, _sizes(state))
    masks = {name: tensor for name, tensor in state.items() if _CAUSAL_MASK.fullmatch(name)}
    expected = (config.num_tokens, config.num_tokens)
    for name, mask in masks.items():
        if mask.shape != expected:
            raise ValueError(
                f"the state dict holds the misshaped {name} {tuple(mask.shape)} in place of {expected}{HINT}"
            )
    return config, {name: tensor for name, tensor in state.items() if name not in masks}


def _settle(settings: Mapping[str, Any], sizes: Mapping[str, Any]) -> SLATEConfig:
    """The settings: those given, those of the shapes, and defaults with a warning."""
    known = {field.name for field in fields(SLATEConfig)}
    if unknown := settings.keys() - known:
        raise ValueError(f"unknown settings of SLATEConfig: {sorted(unknown)}")
    if settings.get("whiten"):
        raise ValueError("whiten must be False: public weights are of images as they are; got True")
    for name, size in sizes.items():
        if settings.get(name, size) != size:
            raise ValueError(
                f"{name}={settings[name]!r} contradicts the state dict, whose shapes say {size!r}"
            )
    try:
        config = SLATEConfig(**{**settings, **sizes})
    except ValueError as error:
        raise ValueError(f"{error}{HINT}") from error
    if assumed := [name for name in _NOT_IN_SHAPES if name not in settings]:
        values = ", ".join(f"{name}={getattr(config, name)!r}" for name in assumed)
        warnings.warn(
            f"a state dict does not tell {', '.join(assumed)}: assuming {values}", stacklevel=4
        )
    return config


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        name: _size(state, entry, dimension) for name, (entry, dimension) in _SIZES.items()
    }
    num_tokens = _size(state, _POSITIONS, 1) - 1
    if num_tokens < 1 or isqrt(num_tokens) ** 2 != num_tokens:
        raise ValueError(
            f"{_POSITIONS} must hold one more position than a square number; got {num_tokens + 1}"
        )
    sizes["image_size"] = isqrt(num_tokens) * PATCH_SIZE
    blocks = {match[1] for name in state if (match := _BLOCK.match(name))}
    if not blocks:
        raise _misses("tf_dec.blocks.0", state)
    sizes["num_decoder_blocks"] = len(blocks)
    sizes["slot_init"] = "gaussian"
    return sizes


def _size(state: Mapping[str, Tensor], entry: str, dimension: int) -> int:
    if entry not in state:
        raise _misses(entry, state)
    shape = state[entry].shape
    if dimension >= len(shape):
        raise ValueError(f"the state dict holds the misshaped {entry} {tuple(shape)}")
    return shape[dimension]


def _misses(entry: str, state: Mapping[str, Tensor]) -> ValueError:
    return ValueError(
        f"the state dict misses {entry}, and holds {some(state) or 'nothing'}{ADVICE}"
    )
