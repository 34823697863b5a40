"""What is done for a run before it, without a GPU: kernels compiled into one file."""
