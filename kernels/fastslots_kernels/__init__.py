"""The slot-attention step, as a function for people with a module of their own.

Depends on torch alone (and triton, for its kernels); knows nothing of `fastslots`.
"""

from fastslots_kernels.api import slot_attention
from fastslots_kernels.backends import ResolvedBackend, resolve_backend
from fastslots_kernels.weights import SlotAttentionWeights

__all__ = [
    "ResolvedBackend",
    "SlotAttentionWeights",
    "resolve_backend",
    "slot_attention",
]
