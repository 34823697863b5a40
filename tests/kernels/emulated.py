"""Triton's interpreter with an NVIDIA GPU's arithmetic, where the two differ.

The interpreter multiplies bfloat16 as integers, and knows neither TF32 nor the approximate exponential. Here
products of bfloat16 are exact before they are summed; TF32 takes the upper 19 bits of its operands; float32
without matrix units is summed in order, one rounding each; powers of 2, but for that of 0, are off by up to
two units in the last place, as CUDA's documentation has it of `exp2f`. Arithmetic of bfloat16 other than
products, which the interpreter would get wrong, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from fastslots_kernels.fused import call, limits, products
from fastslots_kernels.fused.plans import UpdatePlan
from fastslots_kernels.fused.sizes import Sizes

MULTIPROCESSORS = 132  # of an H100 and an H200
_TF32_BITS = np.uint32(0xFFFFE000)
_CASTS = ("si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui", "fp_ext", "fp_trunc")
_aten = torch.ops.aten
_PRODUCTS: dict[Any, Any] = {  # with and without a bias
    _aten.mm.default: _aten.mm,
    _aten.bmm.default: _aten.bmm,
    _aten.addmm.default: _aten.mm,
    _aten.baddbmm.default: _aten.bmm,
}
_product_blocks, _rows_blocks = products.product_blocks, products.rows_blocks
_update_plan = call.update_plan


@contextmanager
def gpu_arithmetic() -> Iterator[None]:
    """Interpreted kernels calculate as on a GPU, and take bfloat16 tensors."""
    builder = interpreter.InterpreterBuilder
    cast, binary, unary = builder.cast_impl, builder.binary_op, builder.unary_op
    random = np.random.default_rng(0)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        before, after = source.dtype.scalar, target.scalar
        if before == after or tl.bfloat16 not in (before, after):
            return cast(self, source, target)
        if (before, after) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.bfloat16)
            return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), after)
        _only_floats(before, after)
        return interpreter.TensorHandle(_from_bfloat16(source.data), after)

    def create_dot(self: Any, a: Any, b: Any, sums: Any, precision: Any, _: Any) -> Any:
        left, right, total = a.data, b.data, sums.data
        if a.dtype.scalar == tl.bfloat16:
            left, right = _from_bfloat16(left), _from_bfloat16(right)
        elif left.dtype == np.float32 and str(precision).endswith("TF32"):
            left, right = _truncated(left), _truncated(right)
        elif left.dtype == np.float32:
            return interpreter.TensorHandle(_summed_in_order(left, right, total), sums.dtype.scalar)
        product = np.matmul(left, right, dtype=total.dtype)
        return interpreter.TensorHandle(product + total, sums.dtype.scalar)

    def binary_op(self: Any, a: Any, b: Any, op: Any) -> Any:
        _only_floats(a.dtype.scalar, b.dtype.scalar)
        return binary(self, a, b, op)

    def unary_op(self: Any, a: Any, op: Any) -> Any:
        _only_floats(a.dtype.scalar)
        if op not in (np.exp, np.exp2) or a.data.dtype != np.float32:
            return unary(self, a, op)
        exponent = a.data * np.float32(np.log2(np.e)) if op is np.exp else a.data
        power = np.exp2(exponent.astype(np.float64))
        noise = np.spacing(power.astype(np.float32)) * random.uniform(-1.5, 1.5, power.shape)
        noise[exponent == 0] = 0  # 1, as PTX has it of `ex2`
        return interpreter.TensorHandle((power + noise).astype(np.float32), a.dtype.scalar)

    replaced: dict[str, Any] = {
        "cast_impl": cast_impl,
        "create_dot": create_dot,
        "binary_op": binary_op,
        "unary_op": unary_op,
        "create_fp_to_fp": lambda self, source, target, _: self.cast_impl(source, target),
        **{
            f"create_{name}": lambda self, source, target: self.cast_impl(source, target)
            for name in _CASTS
        },
    }
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch.object(builder, name, function))
        for owner, name, value in (
            (limits, "why_not_device", None),
            (call, "num_processors", MULTIPROCESSORS),
        ):
            stack.enter_context(mock.patch.object(owner, name, return_value=value))
        for owner, name, replacement in (
            (products, "product_blocks", _large_blocks),
            (products, "rows_blocks", _large_rows_blocks),
            (products, "_BLOCK_COPY", 2**16),
            (call, "update_plan", _wide_plan),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


class GPUProducts(TorchDispatchMode):
    """Eager products of float32 tensors as cuBLAS makes them, not as this CPU's library does.

    Summed in order, one rounding each: a CPU adds up several sums of each entry, which is more exact, and how
    much more depends on its make. With `tf32`, whose rounded operands are what counts, they are the CPU's.
    """

    def __init__(self, *, tf32: bool = False) -> None:
        super().__init__()
        self.tf32 = tf32

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Makes the products itself, or rounds their factors."""
        product = _PRODUCTS.get(function)
        if product is None or args[-1].dtype != torch.float32:
            return function(*args, **kwargs or {})
        assert not kwargs, kwargs
        *bias, left, right = args
        if self.tf32:
            result = product(_rounded(left), _rounded(right))
        else:
            zeros = np.zeros((*left.shape[:-1], right.shape[-1]), np.float32)
            factors = left.detach().numpy(), right.detach().numpy()
            result = torch.from_numpy(_summed_in_order(*factors, zeros))
        return result + bias[0] if bias else result


# Larger tiles, in fewer programs: entries of the same sums, added up in the same order.
def _large_blocks(dtype: torch.dtype) -> products.Blocks:
    return _product_blocks(dtype)._replace(p=256, q=256)


def _large_rows_blocks(dtype: torch.dtype) -> products.Blocks:
    return _rows_blocks(dtype)._replace(p=256, q=256)


def _wide_plan(sizes: Sizes, tile: torch.dtype) -> UpdatePlan:
    plan = _update_plan(sizes, tile)
    return plan._replace(columns=256) if sizes.slot_size > 64 else plan


def _rounded(x: Tensor) -> Tensor:
    return ((x.detach().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def _truncated(x: Any) -> Any:
    return (np.ascontiguousarray(x).view(np.uint32) & _TF32_BITS).view(np.float32)


def _from_bfloat16(bits: Any) -> Any:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _summed_in_order(left: Any, right: Any, total: Any) -> Any:
    left, right, total = left.astype(np.float64), right.astype(np.float64), total.copy()
    exact = np.empty(total.shape)
    for k in range(left.shape[-1]):  # a product and a sum, rounded once
        np.multiply(left[..., k, None], right[..., k, None, :], out=exact)
        exact += total
        total[...] = exact
    return total


def _only_floats(*types: Any) -> None:
    if tl.bfloat16 in types and {*types} != {tl.bfloat16, tl.float32}:
        raise NotImplementedError(f"arithmetic of {', '.join(map(str, types))} is not emulated")
