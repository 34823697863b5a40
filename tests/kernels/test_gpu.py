"""What only a GPU can show of the fused kernels: rounding of its matrix units, waiting, graphs, races."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastslots import SlotAttention
from fastslots.benchmark.measure.memory import memory_use
from fastslots_kernels import SlotAttentionWeights, resolve_backend, slot_attention
from fastslots_kernels.testing import Problem
from tests.kernels.cases import (
    CASES,
    CLEVR,
    LIMITS,
    RAGGED,
    SLATE,
    Case,
    assert_equal_in_float64,
    assert_within_budget,
    make_problem,
    run,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # PyTorch says these once each.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]
CUDA = torch.device("cuda")


def on_gpu(problem: Problem) -> Problem:
    return problem.to(problem.inputs.dtype, CUDA)


def problem_for(case: Case, dtype: torch.dtype) -> tuple[Problem, Problem]:
    """The problem, and the same rounded numbers in float64."""
    problem = on_gpu(make_problem(case, dtype).steady())
    return problem, problem.to(torch.float64)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.id != "wide"]
)  # too wide in float64
def test_equals_the_reference_in_float64(case: Case) -> None:
    problem, oracle = problem_for(case, torch.float64)
    assert_equal_in_float64(run(problem, "triton"), run(oracle, "reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_error_is_within_twice_the_eager_error(case: Case, dtype: torch.dtype) -> None:
    problem, oracle = problem_for(case, dtype)
    exact = run(oracle, "reference")
    assert_within_budget(run(problem, "triton"), run(problem, "reference"), exact, dtype)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("case", CASES)
def test_error_with_tf32_is_within_twice_the_eager_error(case: Case) -> None:
    problem, oracle = problem_for(case, torch.float32)
    exact = run(oracle, "reference")
    # float16 has the mantissa of TF32.
    assert_within_budget(run(problem, "triton"), run(problem, "reference"), exact, torch.float16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_error_under_autocast_is_within_twice_the_eager_error(
    case: Case, dtype: torch.dtype
) -> None:
    problem, oracle = problem_for(case, torch.float32)
    exact = run(oracle, "reference")
    with torch.autocast("cuda", dtype):
        actual, eager = run(problem, "triton"), run(problem, "reference")
    assert_within_budget(actual, eager, exact, dtype)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("gradient", ["neumann", "unrolled"])
def test_gradcheck_passes(gradient: str, heads: int) -> None:
    problem = on_gpu(make_problem(Case(n=5, c=4, d=4, k=2, m=3)))
    weights = problem.weights

    def function(inputs: Tensor, slots: Tensor, *tensors: Tensor) -> Any:
        return slot_attention(
            inputs,
            slots,
            SlotAttentionWeights.from_tensors(tensors, weights.norm_eps),
            num_iterations=2 if gradient == "unrolled" else 0,
            num_heads=heads,
            gradient=gradient,
            backend="triton",
        )[:2]

    tensors = [t.detach().clone().requires_grad_() for t in weights.named_tensors().values()]
    slots = problem.slots.requires_grad_(gradient == "unrolled")
    assert torch.autograd.gradcheck(function, (problem.inputs.requires_grad_(), slots, *tensors))


@pytest.mark.parametrize("case", [SLATE, CLEVR, RAGGED])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_hundred_runs_give_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    problem, _ = problem_for(case, dtype)
    first = run(problem, "triton")
    for _ in range(99):
        for name, value in run(problem, "triton").items():
            assert torch.equal(value, first[name]), name


def training_step(dtype: torch.dtype, **options: Any) -> tuple[SlotAttention, Callable[[], Tensor]]:
    torch.manual_seed(0)
    module = SlotAttention(5, 6, 192, 192, 192, backend="triton", **options).to(CUDA)
    inputs = torch.randn(4, 256, 192, device=CUDA, requires_grad=True)
    slots = torch.randn(4, 6, 192, device=CUDA)

    def step() -> Tensor:
        for tensor in (inputs, *module.parameters()):
            tensor.grad = None
        with torch.autocast("cuda", dtype):
            new, attn = module(inputs, slots)
        (new.square().sum() + attn.square().sum()).backward()
        grads = [p.grad.flatten() for p in module.parameters()]
        # Detached: a graph that lives on would hold nodes of the stream it was made on.
        return torch.cat([new.detach().flatten(), *grads])

    return module, step


@pytest.mark.parametrize("tolerance", [None, 1e-2])
@pytest.mark.parametrize("gradient", ["neumann", "unrolled"])
def test_never_waits_for_the_device(gradient: str, tolerance: float | None) -> None:
    _, step = training_step(torch.bfloat16, gradient=gradient, tolerance=tolerance)
    step()
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tolerance", [None, 1e-2])
def test_a_training_step_is_one_cuda_graph(tolerance: float | None) -> None:
    _, step = training_step(torch.bfloat16, tolerance=tolerance)
    expected = step().clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = step()
    captured.zero_()
    graph.replay()
    torch.testing.assert_close(captured, expected, rtol=0, atol=0)


def test_compiles_as_one_graph_with_cuda_graphs() -> None:
    module, step = training_step(torch.bfloat16)
    expected = step().clone()
    module.compile(fullgraph=True, mode="reduce-overhead")
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        actual = step()
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


def test_memory_does_not_grow_with_the_iterations() -> None:
    module, _ = training_step(torch.bfloat16)
    inputs = torch.randn(8, 1024, 192, device=CUDA, requires_grad=True)
    slots = torch.randn(8, 12, 192, device=CUDA)

    def use(num_iterations: int) -> tuple[int, int]:
        def forward() -> Any:
            return module(inputs, slots, num_iterations=num_iterations)

        def backward(outputs: Any) -> None:
            outputs[0].sum().backward()

        with torch.autocast("cuda", torch.bfloat16):
            backward(forward())
            inputs.grad = None
            module.zero_grad()
            return memory_use(forward, backward, CUDA)

    few, many = use(1), use(127)
    assert few[0] == many[0] <= 0.15 * inputs.numel() * inputs.element_size()
    assert many[1] <= 1.01 * few[1]


def test_more_than_two_to_the_31_elements_are_attended_to() -> None:
    torch.manual_seed(0)
    module = SlotAttention(1, 4, 64, 64, 64).to(CUDA)
    inputs = torch.randn(2, 2**24 + 40, 64, device=CUDA, dtype=torch.bfloat16)
    assert inputs.numel() > 2**31
    slots = torch.randn(2, 4, 64, device=CUDA)
    # The second image lies beyond 2^31; what is behind 64 valid inputs at its end is masked.
    mask = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=CUDA)
    mask[:, -64:] = True
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        module.backend = "triton"
        actual, _ = module(inputs, slots, mask=mask, return_attn=False)
        module.backend = "torch"
        expected, _ = module(inputs[:, -64:].clone(), slots, return_attn=False)
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


def test_auto_takes_the_kernels_on_a_gpu() -> None:
    problem = on_gpu(make_problem(Case(), torch.float32))
    weights = problem.weights
    assert resolve_backend("auto", problem.inputs, problem.slots, weights).name == "triton"
    assert resolve_backend("auto").name == "triton"


@pytest.mark.parametrize(("heads_times_slots", "width"), LIMITS)
def test_all_numbers_of_slots_within_the_limits_work(heads_times_slots: int, width: int) -> None:
    case = Case(b=2, n=77, c=width, d=width, k=heads_times_slots, m=64)
    problem, oracle = problem_for(case, torch.bfloat16)
    exact = run(oracle, "reference")
    assert_within_budget(run(problem, "triton"), run(problem, "reference"), exact, torch.bfloat16)
