"""Runs code meant for a GPU without one, on tensors without memory, and records what it launches.

Tensors are PyTorch's fake ones: shapes, dtypes, strides and storage offsets are right, values do not
exist, and programs that ask for them cannot run. Autograd's engine asks the driver about tensors on a GPU:
they are on the CPU for it, and on the GPU inside of the operators, where kernels are launched.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
from torch._subclasses import FakeTensor, FakeTensorMode, fake_tensor

from fastslots.models.slate import chunks
from fastslots.tools.machine_code import CHIPS
from fastslots_kernels.causal import ops as causal_ops
from fastslots_kernels.fused import call, limits, ops
from fastslots_kernels.fused.launch import Launch, record_launches

CHIP = "sm_90"
PROCESSORS = CHIPS[CHIP].multiprocessors  # an H100 has as many as an H200
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@dataclass(frozen=True)
class Pointer:
    """All that Triton asks of a tensor."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        """Multiples of 16 stand for aligned addresses."""
        return self.address


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Makes tensors fake and PyTorch believe in a GPU, inside."""
    with ExitStack() as stack:
        stack.enter_context(
            FakeTensorMode()
        )  # before PyTorch believes, or it would wake the driver
        for target, name, value in _patches():
            stack.enter_context(mock.patch.object(target, name, value))
        yield


def record(work: Callable[[], object]) -> list[Launch]:
    """What some work launches on a fake GPU, in order, without repeats; tensors are `Pointer`.

    Raises:
        Exception: What the work raises.
    """
    with fake_gpu(), record_launches() as launches:
        work()
    return distinct(launches)


def distinct(launches: Sequence[Launch]) -> list[Launch]:
    """Launches that may differ in what is compiled for them; tensors are `Pointer`."""
    found: dict[Hashable, Launch] = {}
    for one in launches:
        arguments = tuple(map(_pointer, one.arguments))
        constants = tuple(sorted((name, str(value)) for name, value in one.constants.items()))
        kinds = tuple((type(argument), argument) for argument in arguments)
        key = (one.kernel.fn, kinds, constants, one.num_warps, one.resident)
        found.setdefault(key, one._replace(arguments=arguments))
    return list(found.values())


def _pointer(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    # Memory of PyTorch's allocator begins at a multiple of 512 bytes.
    return Pointer(argument.dtype, int(argument.storage_offset()) * argument.element_size() % 16)


class _Autocast(torch.autocast):
    """Autocast of the GPU, for tensors that pretend to be on the CPU."""

    def __init__(self, device_type: str, *arguments: Any, **options: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *arguments, **options)


def _patches() -> Iterator[tuple[Any, str, Any]]:
    yield torch.cuda, "is_available", lambda: True
    yield torch.cuda, "_exchange_device", lambda _: 0
    yield torch.cuda, "_maybe_exchange_device", lambda _: 0
    yield torch.cuda, "synchronize", lambda *_: None
    yield torch, "autocast", _Autocast
    yield torch, "frombuffer", _frombuffer
    yield FakeTensor, "is_cuda", True
    yield fake_tensor, "init_gpu_context", lambda _: None
    yield nn.Module, "_apply", _apply
    yield limits, "why_not_device", lambda _: None
    yield call, "num_processors", lambda _: PROCESSORS
    yield call, "has_warp_groups", lambda _: True
    yield chunks, "_CPU_ENTRIES", chunks._GPU_ENTRIES
    for operator in (*vars(ops).values(), *vars(causal_ops).values()):
        if isinstance(operator, CustomOpDef):
            yield operator, "_abstract_fn", _on_gpu(operator._init_fn)


def _frombuffer(buffer: bytearray, *, dtype: torch.dtype) -> Tensor:
    """As PyTorch's own, without the values."""
    return torch.empty(len(buffer) // dtype.itemsize, dtype=dtype)


def _on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The operator itself, in place of what says which shapes it returns."""

    def run(*arguments: Any) -> Any:
        return _moved(function(*_moved(arguments, GPU)), CPU)

    return run


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors in nested sequences on another device, with their strides and offsets."""
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(entry, device) for entry in value)
    if not isinstance(value, Tensor):
        return value
    size = value.untyped_storage().nbytes() // value.element_size()
    storage = torch.empty(size, dtype=value.dtype, device=device)
    return storage.as_strided(value.shape, value.stride(), value.storage_offset())


def _apply(
    self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True
) -> nn.Module:
    """As PyTorch's own, which cannot replace fake parameters."""
    for module in self.modules() if recurse else [self]:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    new = function(parameter)
                if new is not parameter:
                    module._parameters[name] = nn.Parameter(new, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else function(buffer)
    return self
