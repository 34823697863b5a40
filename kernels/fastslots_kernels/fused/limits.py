"""Where the fused kernels can run. Imports no Triton; all of it can be traced by torch.compile."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from fastslots_kernels.fused.sizes import padded
from fastslots_kernels.weights import SlotAttentionWeights

# A program holds a tile of virtual slots by columns of the inputs, and tiles of whole slots.
MOST_VIRTUAL_SLOTS = 64
MOST_TILE_ENTRIES = 16_384
WIDEST_SLOT = 512

_INSTALLED = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read by Triton too when it is imported


def why_not_here() -> str | None:
    """Why the kernels cannot run on this machine, whatever the tensors, or None."""
    if not _INSTALLED:
        return "triton is not installed"
    if torch.cuda.is_available() or _INTERPRETED:
        return None
    return "there is no CUDA device, and TRITON_INTERPRET=1 is not set"


def why_not(
    inputs: Tensor, slots: Tensor, weights: SlotAttentionWeights, num_heads: int
) -> str | None:
    """Why the kernels cannot run on these tensors, with the rule and the value, or None."""
    return (
        why_not_here()
        or _why_not_device(inputs)
        or _why_not_sizes(num_heads * slots.shape[1], weights.input_size, weights.slot_size)
    )


def tile_dtype(inputs: Tensor) -> torch.dtype:
    """The dtype of matrix products: that of the inputs, or autocast's."""
    device, dtype = inputs.device.type, inputs.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype


def _why_not_device(inputs: Tensor) -> str | None:
    device = inputs.device
    if device.type == "cuda":
        major, minor = _capability(device.index)
        if torch.version.hip is not None or major < 8:
            return f"they need an NVIDIA GPU of compute capability 8.0 or more; got {major}.{minor}"
        return None
    if device.type != "cpu":
        return f"they need CUDA tensors; got tensors on {device}"
    if not _INTERPRETED:
        return "they need CUDA tensors, or TRITON_INTERPRET=1 for CPU tensors; got CPU tensors"
    if tile_dtype(inputs) == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly; use float16, float32 or float64"
    return None


def _why_not_sizes(virtual: int, input_size: int, slot_size: int) -> str | None:
    if virtual > MOST_VIRTUAL_SLOTS:
        return f"heads times slots must be at most {MOST_VIRTUAL_SLOTS}; got {virtual}"
    widest = MOST_TILE_ENTRIES // padded(virtual)
    if input_size > widest:
        return f"the input width must be at most {widest} with {virtual} heads times slots; got {input_size}"
    if slot_size > WIDEST_SLOT:
        return f"the slot width must be at most {WIDEST_SLOT}; got {slot_size}"
    return None


def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


# What torch.compiler.assume_constant_result does; that would import the compiler, which takes seconds.
_capability._dynamo_marked_constant = True  # type: ignore[attr-defined]
