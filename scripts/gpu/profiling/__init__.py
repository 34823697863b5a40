"""Stages that look at single kernels: time, counters, other tiles."""
