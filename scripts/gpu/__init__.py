"""The stages of `scripts/gpu_run` and what runs them."""
