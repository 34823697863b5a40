"""Slot attention as a fixed point: implicit gradients, projection-free steps, and SLATE around them."""

from fastslots.slate import SLATE, SLATEConfig, SLATEOutput
from fastslots.slot_attention import SlotAttention
from fastslots.slot_init import SlotInit
from fastslots_kernels import resolve_backend

__all__ = ["SLATE", "SLATEConfig", "SLATEOutput", "SlotAttention", "SlotInit", "resolve_backend"]
