"""Slot attention as a fixed point."""
