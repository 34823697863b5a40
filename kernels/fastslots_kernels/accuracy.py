"""How far a result may be from the float64 oracle: what its own dtype's rounding explains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

FLOAT64_BOUND = 1e-9


class Comparison(NamedTuple):
    """One tensor's largest errors, absolute."""

    name: str
    error: float  # of the result that is judged
    eager_error: float  # of the reference in the same dtype
    scale: float  # the largest entry, which the bound is relative to
    bound: float  # what the error may be

    @property
    def ok(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.error <= self.bound

    @property
    def share(self) -> float:
        """The error over the bound: at most 1 if it is ok; infinite where nothing may be off."""
        if self.bound:
            return self.error / self.bound
        return math.inf if self.error else 0.0


def compare(
    actual: Mapping[str, Tensor],
    eager: Mapping[str, Tensor],
    oracle: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    scale: float | None = None,
) -> list[Comparison]:
    """Judges results by the rule ``max|actual - oracle| <= 2 max|eager - oracle| + eps * scale``.

    In float64, where eager and oracle are the same, by ``max|actual - oracle| <= 1e-9 * scale``.

    Args:
        actual: What is judged, by name.
        eager: The reference in ``dtype``, by the same names.
        oracle: The reference in float64 on the same rounded tensors.
        dtype: Of the computation that is judged.
        scale: What eps is relative to. Default: each tensor's own largest entry. Gradients share the
            `largest` of their call, since some are zero in exact arithmetic.

    Returns:
        One comparison for each entry of ``oracle``, in its order.
    """
    found = []
    for name, exact in oracle.items():
        error, eager_error = (largest(x[name].double() - exact) for x in (actual, eager))
        size = largest(exact) if scale is None else scale
        if dtype == torch.float64:
            bound = FLOAT64_BOUND * size
        else:
            bound = 2 * eager_error + torch.finfo(dtype).eps * size
        found.append(Comparison(name, error, eager_error, size, bound))
    return found


def largest(*tensors: Tensor) -> float:
    """The largest absolute entry of tensors of one dtype; NaN if there is one."""
    found = [x.abs().max() for x in tensors if x.numel()]
    return float(torch.stack(found).max()) if found else 0.0
