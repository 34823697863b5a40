"""What is measured on a GPU: here with stand-ins for the device, and on one where there is one."""

import sys
import types

import pytest
import torch
from torch.autograd.profiler import DeviceType

from fastslots.benchmark import (
    Call,
    Problem,
)
from fastslots.benchmark.attention.prepare import launches_per_iteration
from fastslots.benchmark.measure.bandwidth import copy_gb_s
from fastslots.benchmark.measure.energy import energy_counter, joules_per_run
from fastslots.benchmark.measure.launches import count_kernels, is_kernel
from fastslots.benchmark.measure.precision import autocast, matmul_precision, products_dtype
from tests.benchmark.attention.cases import CPU, CUDA, NO_GRAD, TINY, needs_gpu

pytestmark = pytest.mark.slow


def test_tf32_is_on_inside_alone():
    before = torch.get_float32_matmul_precision()
    with matmul_precision("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        with matmul_precision("bf16"):
            assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before


def test_products_round_as_their_precision_says():
    assert torch.finfo(products_dtype("tf32", torch.float32)).eps == 2.0**-10
    assert products_dtype("bf16", torch.float32) == torch.bfloat16
    assert products_dtype("ieee", torch.float64) == torch.float64
    with autocast("ieee", CPU):
        assert not torch.is_autocast_enabled("cpu")


def test_a_cpu_has_no_copy_bandwidth_no_energy_and_no_launches():
    assert copy_gb_s(CPU) is None
    assert energy_counter(CPU) is None
    call = Call(NO_GRAD[0], Problem.make(TINY, CPU), 1)
    assert launches_per_iteration([call], CPU) == {NO_GRAD[0]: None}


class NVMLError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch):
    """The driver's library with one GPU, which has used 5 J and uses 2 J between readings."""
    used = iter(range(3000, 100_000, 2000))

    def by_uuid(uuid):
        if uuid != "GPU-12-34":
            raise NVMLError
        return "handle"

    module = types.ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = by_uuid
    module.nvmlDeviceGetTotalEnergyConsumption = lambda handle: next(used)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = types.SimpleNamespace(uuid="12-34")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return module


def test_reads_joules_from_the_driver(nvml):
    counter = energy_counter(CUDA)
    assert counter() == 5.0
    ran = []
    joules = joules_per_run(lambda: ran.append(1), 10.0, counter, lambda: None, 0.04)
    assert (len(ran), joules) == (50 + 200, 2 / 200)  # 0.5 s of warm-up, a window of 2 s
    assert joules_per_run(lambda: None, 10.0, counter, lambda: None, 0) is None
    assert joules_per_run(lambda: None, 10.0, None, lambda: None, 1) is None


def test_energy_that_cannot_be_read_is_none(nvml, monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="other")
    )
    assert energy_counter(CUDA) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_counter(CUDA) is None


def event(name, device_type=DeviceType.CUDA, is_user_annotation=False):
    return types.SimpleNamespace(
        name=name, device_type=device_type, is_user_annotation=is_user_annotation
    )


def test_kernels_are_what_the_device_runs_but_copies():
    kernels = [event("gemm"), event("_attend_kernel")]
    others = [
        event("Memcpy DtoD"),
        event("Memset (Device)"),
        event("aten::mm", DeviceType.CPU),
        event("step", is_user_annotation=True),
    ]
    assert [is_kernel(one) for one in kernels + others] == [True] * 2 + [False] * 4


@pytest.mark.gpu
@needs_gpu
def test_counts_the_kernels_of_one_addition():
    ones = torch.ones(1000, device="cuda")
    assert count_kernels(lambda: ones + 1, CUDA) == 1
