"""Where the fused kernels can run. Imports no Triton; all of it can be traced by torch.compile."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fastslots_kernels.autocast import autocast_dtype
from fastslots_kernels.fused.sizes import padded
from fastslots_kernels.weights import SlotAttentionWeights

MOST_VIRTUAL_SLOTS = 64
WIDEST_INPUT = 512
WIDEST_SLOT = 512
# A program holds several tiles of virtual slots by columns of the inputs, or of whole slots.
LEAST_SHARED_KIB = 160
MOST_TILE_BYTES = 32 * 1024
MOST_SLOT_BYTES = 2 * 1024

_INSTALLED = find_spec("triton") is not None
# As Triton reads it, when it is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def why_not_here() -> str | None:
    """Why the kernels cannot run on this machine, whatever the tensors, or None. Wakes no GPU."""
    if not _INSTALLED:
        return "triton is not installed"
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "there is no CUDA device, and TRITON_INTERPRET=1 is not set"


def why_not(
    inputs: Tensor, slots: Tensor, weights: SlotAttentionWeights, num_heads: int
) -> str | None:
    """Why the kernels cannot run on these tensors, with the rule and the value, or None."""
    return why_not_device(inputs) or _why_not_sizes(
        num_heads * slots.shape[1],
        weights.input_size,
        weights.slot_size,
        tile_dtype(inputs).itemsize,
    )


def tile_dtype(inputs: Tensor) -> torch.dtype:
    """The dtype of matrix products: that of the inputs, or autocast's."""
    dtype = inputs.dtype
    return dtype if dtype == torch.float64 else autocast_dtype(inputs.device) or dtype


def why_not_device(inputs: Tensor) -> str | None:
    """Why the kernels cannot run where these tensors are, or None."""
    if not _INSTALLED:
        return why_not_here()
    device = inputs.device
    if device.type == "cuda":
        return _why_not_gpu(device.index)
    if device.type != "cpu":
        return f"they need CUDA tensors; got tensors on {device}"
    if not INTERPRETED:
        return "they need CUDA tensors, or TRITON_INTERPRET=1 for CPU tensors; got CPU tensors"
    if tile_dtype(inputs) == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly; use float16, float32 or float64"
    return None


def _why_not_gpu(index: int) -> str | None:
    if INTERPRETED:
        return "TRITON_INTERPRET=1 is set, for CPU tensors"
    if torch.version.hip is not None:
        return "they need an NVIDIA GPU"
    gpu: Any = torch.cuda.get_device_properties(index)  # torch 2.14's hints lack an attribute
    if gpu.major < 8:
        return f"they need compute capability 8.0 or more; got {gpu.major}.{gpu.minor}"
    shared = gpu.shared_memory_per_block_optin // 1024
    if shared < LEAST_SHARED_KIB:
        return f"they need {LEAST_SHARED_KIB} KiB of shared memory in a block; got {shared}"
    return None


# What torch.compiler.assume_constant_result does; that would import the compiler, which takes seconds.
_why_not_gpu._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _why_not_sizes(virtual: int, input_size: int, slot_size: int, itemsize: int) -> str | None:
    if virtual > MOST_VIRTUAL_SLOTS:
        return f"heads times slots must be at most {MOST_VIRTUAL_SLOTS}; got {virtual}"
    widest = min(WIDEST_INPUT, MOST_TILE_BYTES // (itemsize * padded(virtual)))
    if input_size > widest:
        return (
            f"with {virtual} heads times slots of {itemsize} bytes an entry, "
            f"the input width must be at most {widest}; got {input_size}"
        )
    widest = min(WIDEST_SLOT, MOST_SLOT_BYTES // itemsize)
    if slot_size > widest:
        return f"the slot width must be at most {widest}; got {slot_size}"
    return None
