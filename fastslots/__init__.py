"""Slot attention as a fixed point: implicit gradients, projection-free steps, and models around them."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastslots.models.autoencoder import (
        SlotAutoencoder,
        SlotAutoencoderConfig,
        SlotAutoencoderOutput,
    )
    from fastslots.models.slate import SLATE, SLATEConfig, SLATEOutput
    from fastslots.slot_attention import SlotAttention
    from fastslots.slot_init import SlotInit
    from fastslots.version import __version__
    from fastslots_kernels import resolve_backend

__all__ = [
    "SLATE",
    "SLATEConfig",
    "SLATEOutput",
    "SlotAttention",
    "SlotAutoencoder",
    "SlotAutoencoderConfig",
    "SlotAutoencoderOutput",
    "SlotInit",
    "__version__",
    "resolve_backend",
]

# Imported when first asked for: PyTorch takes seconds, in which the command line must already be able to
# answer an interrupt.
_HOMES = {
    "SLATE": "fastslots.models.slate",
    "SLATEConfig": "fastslots.models.slate",
    "SLATEOutput": "fastslots.models.slate",
    "SlotAttention": "fastslots.slot_attention",
    "SlotAutoencoder": "fastslots.models.autoencoder",
    "SlotAutoencoderConfig": "fastslots.models.autoencoder",
    "SlotAutoencoderOutput": "fastslots.models.autoencoder",
    "SlotInit": "fastslots.slot_init",
    "__version__": "fastslots.version",
    "resolve_backend": "fastslots_kernels",
}

if not TYPE_CHECKING:  # else a type checker would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
            return value
        if importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
