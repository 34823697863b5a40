"""Slot-attention steps."""
