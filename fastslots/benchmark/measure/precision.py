"""Products in the precision of a case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Turns tf32 on inside for precision "tf32", and off for the others."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """What a forward runs in: bfloat16 autocast for precision "bf16"."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def products_dtype(precision: str, dtype: torch.dtype) -> torch.dtype:
    """A dtype that rounds as the products do: tf32 has as many bits behind the point as float16."""
    return {"tf32": torch.float16, "bf16": torch.bfloat16}.get(precision, dtype)
