"""SLATE's training step, against SLATE in the form of its public code."""
