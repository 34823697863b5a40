"""What tests of kernels share: Triton's interpreter made faster, poisoned memory, TF32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from tests.kernels import poisoned


@pytest.fixture(scope="session", autouse=True)
def replace_the_language_once() -> Iterator[None]:
    """Functions that a kernel calls find Triton's language as the kernel has left it.

    At every call of one the interpreter looks through all names of the language for what it must replace,
    which a kernel's launch has done for all that it calls: a third to a half of the time of these tests.
    Only names that a module alone has, such as those of Triton's own functions, are looked for once.
    """
    # Not before TRITON_INTERPRET is set, which Triton reads when it is imported.
    from triton.runtime import interpreter  # noqa: PLC0415

    modules = set()

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.fn.__module__ not in modules:
            modules.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        try:
            return self.rewrite()(*arguments, **options)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    with mock.patch.object(interpreter.InterpretedFunction, "__call__", call):
        yield


@pytest.fixture
def unchecked_offsets() -> Iterator[None]:
    """Sums and products of integers are not computed again in 64 bits, to see whether they overflow.

    That is up to half of the time. For tests of what does not depend on it: others check the same offsets.
    """
    from triton.runtime import interpreter  # noqa: PLC0415 - as above

    builder = interpreter.interpreter_builder
    options = replace(builder.options, sanitize_overflow=False)
    with mock.patch.object(builder, "options", options):
        yield


@pytest.fixture
def gpu_products() -> Iterator[None]:
    """Products of float32, those of kernels and of PyTorch, are the same on every CPU: summed in order."""
    from tests.kernels.emulated import GPUProducts, gpu_arithmetic  # noqa: PLC0415 - as above

    with gpu_arithmetic(), GPUProducts():
        yield


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """`poisoned.poisoned_memory`."""
    with poisoned.poisoned_memory():
        yield


@pytest.fixture
def tf32() -> Iterator[None]:
    """Products of float32 may take TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)
