"""Slot attention by itself: time and memory against the number of iterations."""
