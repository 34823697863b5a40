"""Programs for those who change the kernels: `scripts/check_kernels`, `scripts/gradcheck`."""
