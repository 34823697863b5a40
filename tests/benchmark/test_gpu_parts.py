"""What the benchmark measures on a GPU: here with stand-ins for the device, and on one where there is one."""

import contextlib
import dataclasses
import sys
import types

import pytest
import torch
from torch import nn
from torch.autograd.profiler import DeviceType

from fastslots.benchmark import (
    Call,
    Case,
    IncorrectResultError,
    Problem,
    Provider,
    check_call,
    choose_providers,
    markdown,
    run_benchmark,
)
from fastslots.benchmark.attention import calls, cases, prepare, providers
from fastslots.benchmark.attention.calls import BY_ORACLE, BY_RUNNING
from fastslots.benchmark.attention.package import PACKAGE
from fastslots.benchmark.measure.bandwidth import copy_gb_s, gb_s, least_bytes
from fastslots.benchmark.measure.energy import energy_counter, joules_per_run
from fastslots.benchmark.measure.launches import count_kernels, is_kernel, launches_per_iteration
from fastslots.benchmark.measure.precision import autocast, matmul_precision, products_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

pytestmark = pytest.mark.slow

TINY = Case("tiny", 2, 10, 8, 3, 8, 8, iterations=(1, 2))
NO_GRAD = [Provider(backend, "no-grad") for backend in ("reference", "torch")]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class FakeModel(nn.Module):
    """Has the constructor and the call of the package's module."""

    def __init__(self, num_slots, dim, iters=3, eps=1e-8, hidden_dim=128):
        super().__init__()
        self.num_slots, self.iters = num_slots, iters
        self.layer = nn.Linear(dim, dim)

    def forward(self, inputs):
        slots = inputs[:, : self.num_slots]
        for _ in range(self.iters):
            slots = slots + self.layer(slots).tanh()
        return slots


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("slot_attention")
    module.SlotAttention = FakeModel
    monkeypatch.setitem(sys.modules, "slot_attention", module)
    return module


def test_forwards_alone_have_no_backward():
    results = run_benchmark([TINY], NO_GRAD, CPU, repeats=3)
    assert len(results.rows) == 4
    for row in results.rows:
        assert row.backward_ms_p50 is row.backward_ms_p80 is None
        assert row.both_ms_p50 == row.forward_ms_p50 > 0
        assert row.speedup == 1 if row.backend == "reference" else row.speedup > 0
    assert "| torch | no-grad | 2 |" in markdown(results)
    assert "no-grad: T iterations without a graph" in markdown(results)


def test_a_forward_alone_makes_no_graph_and_no_attention():
    call = Call(NO_GRAD[1], Problem.make(TINY, CPU), 3)
    (slots, attn, _), grads = call.run()
    assert (attn, grads) == (None, ())
    assert not slots.requires_grad


def test_wrong_slots_of_a_forward_alone_are_found(monkeypatch):
    right = calls.slot_attention

    def wrong(*args, backend, **options):
        slots, attn, used = right(*args, backend=backend, **options)
        return slots * (1 if backend == "reference" else 1.001), attn, used

    monkeypatch.setattr(calls, "slot_attention", wrong)
    results = run_benchmark([TINY], NO_GRAD, CPU, repeats=3)
    assert {row.provider for row in results.rows} == {"reference"}
    (entry,) = results.wrong
    assert (entry.provider, entry.gradient, entry.iterations) == ("torch", "no-grad", None)
    assert "torch (no-grad, 1 iterations" in entry.reason
    assert "slots is off by" in entry.reason


@pytest.mark.parametrize("precision", cases.PRECISIONS)
@pytest.mark.parametrize("gradient", providers.MODES)
def test_rows_name_their_precision_and_right_results_pass(precision, gradient):
    case = dataclasses.replace(TINY, precision=precision)
    results = run_benchmark([case], [Provider("torch", gradient)], CPU, repeats=3)
    assert {row.precision for row in results.rows} == {precision}
    assert {row.check for row in results.rows} == {BY_ORACLE}
    words = {
        "ieee": "float32**",
        "tf32": "float32, tf32 products",
        "bf16": "float32, bf16 autocast",
    }
    assert words[precision] in markdown(results)


def test_autocast_reaches_the_call_and_not_its_oracle(monkeypatch):
    seen = []
    right = calls.slot_attention

    def spy(inputs, *args, **options):
        seen.append((inputs.dtype, torch.is_autocast_enabled("cpu")))
        return right(inputs, *args, **options)

    monkeypatch.setattr(calls, "slot_attention", spy)
    problem = Problem.make(dataclasses.replace(TINY, precision="bf16"), CPU)
    check_call(Call(Provider("torch", "implicit"), problem, 1))
    assert seen == [(torch.float64, False), (torch.float32, True), (torch.float32, True)]


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp8"}, "precision must be one of .*; got 'fp8'"),
        ({"precision": "tf32", "dtype": "float64"}, "precision 'tf32' needs dtype float32"),
    ],
)
def test_rejects_a_precision_that_breaks_a_rule(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_measures_the_package_of_pypi_and_says_how_it_was_checked(package):
    chosen, skipped = choose_providers(CPU, [PACKAGE], providers.MODES, compiled=False)
    assert ([p.gradient for p in chosen], skipped) == (["unrolled", "no-grad"], [])
    results = run_benchmark([TINY], chosen, CPU, repeats=3)
    assert [row.check for row in results.rows] == [BY_RUNNING] * 4
    assert "slot-attention of PyPI has parameters of its own" in markdown(results)


def test_the_package_must_give_finite_slots(package, monkeypatch):
    monkeypatch.setattr(FakeModel, "forward", lambda self, x: self.layer(x[:, :3]) / 0)
    call = Call(Provider(PACKAGE, "unrolled"), Problem.make(TINY, CPU), 1)
    with pytest.raises(IncorrectResultError, match=r"slot-attention .*not finite are \['slots'"):
        check_call(call)


def test_sizes_that_the_package_does_not_have_are_left_out(package):
    case = dataclasses.replace(TINY, input_size=4)
    results = run_benchmark([case], [Provider(PACKAGE, "unrolled")], CPU)
    assert not results.rows
    assert {s.reason for s in results.skipped} == {
        "slot-attention needs inputs and slots of one width, an MLP at least as wide, and one head; "
        "got widths 4, 8 and 8, 1 heads"
    }


def test_a_package_that_is_missing_says_how_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "slot_attention", None)
    with pytest.raises(RuntimeError, match=r"cannot be imported .*pip install slot-attention"):
        choose_providers(CPU, [PACKAGE])
    _, skipped = providers.sort_out([Provider(PACKAGE, "unrolled")], CPU)
    assert skipped[0].provider == PACKAGE


def test_graphs_need_a_cuda_device():
    graphed = [Provider("torch", gradient, graphed=True) for gradient in cases.GRADIENTS]
    chosen, skipped = providers.sort_out(graphed, CPU)
    assert chosen == []
    assert [(s.provider, s.reason) for s in skipped] == [
        ("torch + graph", "CUDA graphs need a CUDA device; this one is 'cpu'")
    ]


def test_on_cuda_every_backend_is_replayed_and_the_control_is_compiled(monkeypatch):
    monkeypatch.setattr(providers, "resolve_backend", lambda name: None)
    chosen, skipped = choose_providers(CUDA, gradients=["implicit"])
    assert not skipped
    assert [p.label for p in chosen] == [
        *("reference", "torch", "triton"),
        *("reference + graph", "torch + graph", "triton + graph"),
        *("reference + compile + graph", "torch + compile + graph"),
    ]
    assert all(p.graphed for p in choose_providers(CUDA, graphed=False)[0] if p.compiled)


class FakeGraph:
    """Notes its replays."""

    log: list[int] = []  # noqa: RUF012 - of all graphs

    def replay(self):
        self.log.append(id(self))


@pytest.fixture
def fake_cuda(monkeypatch):
    """Captures by running: all of torch.cuda that graphs use."""
    FakeGraph.log.clear()
    stream = types.SimpleNamespace(wait_stream=lambda other: None)

    @contextlib.contextmanager
    def graph(cuda_graph, pool):
        yield

    for name, value in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": contextlib.nullcontext,
        "CUDAGraph": FakeGraph,
        "graph": graph,
        "device": contextlib.nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize("gradient", ["implicit", "no-grad"])
def test_a_captured_call_replays_its_forward_and_then_its_backward(fake_cuda, gradient):
    call = Call(Provider("torch", gradient, graphed=True), Problem.make(TINY, CPU), 2)
    expected, expected_grads = call.run()
    call.capture(None)
    outputs, grads = call.run()
    assert len(set(FakeGraph.log)) == len(FakeGraph.log) == (2 if gradient == "implicit" else 1)
    torch.testing.assert_close(outputs[0], expected[0], rtol=0, atol=0)
    assert not outputs[0].requires_grad
    assert len(grads) == len(expected_grads)
    call.graphs.forget()
    assert call.run() == ((), ())


def test_rows_of_graphs_are_checked_and_have_the_memory_of_before_their_capture(fake_cuda):
    graphed = Provider("torch", "implicit", graphed=True)
    results = run_benchmark([TINY], [graphed, Provider("torch", "implicit")], CPU, repeats=3)
    by_provider = {(row.provider, row.iterations): row for row in results.rows}
    assert by_provider["torch + graph", 2].graphed
    assert by_provider["torch + graph", 2].peak_bytes == by_provider["torch", 2].peak_bytes > 0
    assert by_provider["torch + graph", 1].check == BY_ORACLE


def test_what_cannot_be_captured_is_left_out_with_its_reason(fake_cuda, monkeypatch):
    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand a trace")

    monkeypatch.setattr(calls, "Graphs", fail)
    graphed = Provider("torch", "implicit", graphed=True)
    results = run_benchmark([TINY], [graphed, Provider("torch", "implicit")], CPU, repeats=3)
    assert {row.provider for row in results.rows} == {"torch"}
    assert [(s.provider, s.iterations, s.reason) for s in results.skipped] == [
        (
            "torch + graph",
            count,
            "no CUDA graph could be captured: operation not permitted when stream is capturing",
        )
        for count in (1, 2)
    ]


def test_counts_the_bytes_that_a_forward_must_read():
    """float32 inputs in every step; with bfloat16 products normalised once where steps are many."""
    elements = 2 * 10 * 8
    case = dataclasses.replace(TINY, precision="bf16")
    assert least_bytes(TINY, Provider("torch", "no-grad"), 3) == elements * 4 * 3
    assert least_bytes(case, Provider("torch", "no-grad"), 1) == elements * 4
    assert least_bytes(case, Provider("torch", "implicit"), 3) == elements * (4 + 2 * 4)
    assert gb_s(3_000_000, 1.5) == 2.0
    (row, *_) = run_benchmark([TINY], NO_GRAD[:1], CPU, repeats=3).rows
    assert row.forward_gb_s == pytest.approx(elements * 4 / row.forward_ms_p50 / 1e6)


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


def test_launches_per_iteration_are_those_of_further_ones(monkeypatch):
    """Of 5 kernels once and 3 per iteration; more than 7 iterations are not counted."""
    monkeypatch.setattr(
        "fastslots.benchmark.measure.launches.count_kernels",
        lambda run, device: 5 + 3 * run.__self__.iterations,
    )
    problem = Problem.make(TINY, CPU)
    found = [Call(NO_GRAD[0], problem, count) for count in (1, 3, 7, 15)]
    found.append(Call(NO_GRAD[1], problem, 7))
    assert launches_per_iteration(found, CUDA) == {NO_GRAD[0]: 3.0, NO_GRAD[1]: None}


def test_a_profiler_that_sees_no_kernel_counts_nothing(monkeypatch):
    monkeypatch.setattr("fastslots.benchmark.measure.launches.count_kernels", lambda run, device: 0)
    problem = Problem.make(TINY, CPU)
    found = [Call(NO_GRAD[0], problem, count) for count in (1, 3)]
    assert launches_per_iteration(found, CUDA) == {NO_GRAD[0]: None}


def test_a_table_has_the_columns_of_a_gpu_where_there_was_one():
    results = run_benchmark([TINY], NO_GRAD, CPU, repeats=3)
    assert "launches / T" not in markdown(results)
    rows = [
        dataclasses.replace(
            row, launches_per_iteration=3.0, forward_gb_s=1500.0, copy_gb_s=3000.0, joules=0.25
        )
        for row in results.rows
    ]
    text = markdown(dataclasses.replace(results, rows=rows))
    assert "| launches / T | forward GB/s | J |" in text
    assert "| 3.00 | 1500 (50%) | 0.250 |" in text
    assert "share of the bandwidth of a copy" in text


def test_a_provider_without_results_is_no_error():
    """All of them may be left out: nothing is timed, and the reasons are kept."""
    compiled = Provider("torch", "no-grad", compiled=True)
    results = run_benchmark([TINY], [compiled], CPU, compile_limit_s=0)
    assert (results.rows, len(results.skipped)) == ([], 2)


def test_warm_up_hides_no_error_of_ours(monkeypatch):
    def fail(*_):
        raise ValueError("inputs must have width 8")

    monkeypatch.setattr(prepare, "Call", fail)
    with pytest.raises(ValueError, match="inputs must have width 8"):
        run_benchmark([TINY], NO_GRAD, CPU)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", cases.PRECISIONS)
def test_every_provider_runs_on_a_gpu(precision):
    case = Case("small", 4, 100, 32, 3, 32, 64, iterations=(1, 3), precision=precision)
    chosen, skipped = choose_providers(CUDA, gradients=providers.MODES, compiled=False)
    results = run_benchmark([case], chosen, CUDA, repeats=3, skipped=skipped)
    assert not results.skipped
    assert {row.backend for row in results.rows} == {"reference", "torch", "triton"}
    for row in results.rows:
        assert row.launches_per_iteration >= 1
        assert row.copy_gb_s > 0 < row.forward_gb_s
        assert row.peak_bytes > 0


@pytest.mark.gpu
@needs_gpu
def test_compiled_forms_are_captured_on_a_gpu():
    case = Case("small", 4, 100, 32, 3, 32, 64, iterations=(2,))
    chosen, _ = choose_providers(CUDA, ["reference"], ["implicit", "no-grad"], graphed=False)
    results = run_benchmark([case], chosen, CUDA, repeats=3)
    assert not results.skipped
    assert sum(row.compiled and row.graphed for row in results.rows) == 4


@pytest.mark.gpu
@needs_gpu
def test_counts_the_kernels_of_one_addition():
    ones = torch.ones(1000, device="cuda")
    assert count_kernels(lambda: ones + 1, CUDA) == 1
