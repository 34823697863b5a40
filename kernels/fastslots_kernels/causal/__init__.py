"""Causal attention whose dropout follows from hashes, in Triton kernels, as an operator of PyTorch."""

from fastslots_kernels.causal.ops import causal_attention, why_not

__all__ = ["causal_attention", "why_not"]
