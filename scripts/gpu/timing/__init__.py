"""Stages that measure time and memory, and those that prepare or follow them."""
