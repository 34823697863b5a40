"""Causal attention with keyed dropout by kernels: against plain PyTorch, interpreted and on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastslots.models.slate.causal_attention import causal_attention
from fastslots.noise import Noise, sample_keys
from fastslots_kernels import causal
from fastslots_kernels.causal import launches, ops
from fastslots_kernels.fused.limits import INTERPRETED
from tests.kernels.cases import assert_within_budget
from tests.kernels.emulated import GPUProducts, gpu_arithmetic

CPU = torch.device("cpu")
DROPOUT = 0.3
# B, H, N, D and the factor of queries and keys.
CASES = [
    pytest.param((2, 2, 136, 24, 1.0), id="slate"),
    pytest.param((2, 2, 132, 16, 8.0), id="sharp"),
    pytest.param((12, 2, 4, 64, 1.0), id="few"),
    pytest.param((3, 2, 70, 64, 1.0), id="wide"),
    pytest.param((9, 1, 65, 5, 1.0), id="odd"),
    pytest.param((1, 1, 1, 8, 1.0), id="one"),
]
Shape = tuple[int, int, int, int, float]
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")


class Problem:
    """Queries, keys, values and the output's gradient, drawn in float32 and rounded."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device = CPU) -> None:
        b, h, n, d, factor = shape
        generator = torch.Generator().manual_seed(0)

        def normal(scale: float) -> Tensor:  # [B, H, N, D], as heads are split
            x = scale * torch.randn(b, n, h, d, generator=generator)
            return x.to(device, dtype).transpose(1, 2)

        self.q, self.k = normal(factor).requires_grad_(), normal(factor).requires_grad_()
        self.v, self.grad = normal(1.0).requires_grad_(), normal(1.0)
        self.keys = sample_keys(range(b), 0).to(device)

    def double(self) -> Problem:
        """The same rounded numbers in float64."""
        other = object.__new__(Problem)
        other.keys, other.grad = self.keys, self.grad.double()
        other.q, other.k, other.v = (
            x.detach().double().requires_grad_() for x in (self.q, self.k, self.v)
        )
        return other


def run(problem: Problem, backend: str) -> dict[str, Tensor]:
    """Output and gradients, by name; those of ``"eager"`` are autograd's of the whole table."""
    noise, inputs = Noise(problem.keys), (problem.q, problem.k, problem.v)
    if backend == "eager":
        output = whole_attention(*inputs, noise)
    else:
        output = causal_attention(*inputs, DROPOUT, noise, backend)
    grads = torch.autograd.grad(output, inputs, problem.grad.to(output.dtype))
    return {"output": output.detach()} | dict(zip(("d_q", "d_k", "d_v"), grads, strict=True))


def whole_attention(q: Tensor, k: Tensor, v: Tensor, noise: Noise) -> Tensor:
    """As users write it."""
    length = q.shape[2]
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    logits = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf)
    rows = logits.softmax(-1).flatten(1, 2)
    return noise.dropout(rows, DROPOUT).view_as(logits).to(v.dtype) @ v


@pytest.mark.slow
@interpreted
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("shape", CASES)
def test_equals_the_whole_table_in_float64(shape: Shape) -> None:
    problem = Problem(shape, torch.float64)
    oracle = run(problem, "eager")
    assert_within_budget(run(problem, "triton"), oracle, oracle, torch.float64)


@pytest.mark.slow
@interpreted
def test_drops_what_parts_drop() -> None:
    problem = Problem((2, 3, 100, 16, 0.0), torch.float64)  # every weight is 1 / (1 + its query)
    with torch.no_grad():
        problem.v.copy_(torch.eye(100, 16, dtype=torch.float64))
    ours, parts = run(problem, "triton"), run(problem, "torch")
    for name in ours:
        assert torch.equal(ours[name] == 0, parts[name] == 0), name
    assert (ours["output"] == 0).any()


@interpreted
@pytest.mark.slow
def test_passes_gradcheck() -> None:
    problem = Problem((1, 2, 5, 3, 1.0), torch.float64)

    def attend(*inputs: Tensor) -> Tensor:
        return causal_attention(*inputs, DROPOUT, Noise(problem.keys), "triton")

    assert torch.autograd.gradcheck(attend, (problem.q, problem.k, problem.v))


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", CASES)
def test_error_is_far_from_twice_the_eager_error(shape: Shape, dtype: torch.dtype) -> None:
    problem = Problem(shape, dtype)
    with gpu_arithmetic():
        actual = run(problem, "triton")
    with GPUProducts():
        eager = run(problem, "eager")
    exact = run(problem.double(), "eager")
    assert_within_budget(actual, eager, exact, dtype, most=0.8)


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("shape", CASES)
def test_error_with_tf32_is_far_from_twice_the_eager_error(shape: Shape) -> None:
    problem = Problem(shape, torch.float32)
    with gpu_arithmetic():
        actual = run(problem, "triton")
    with GPUProducts(tf32=True):
        eager = run(problem, "eager")
    exact = run(problem.double(), "eager")
    # float16 has the mantissa of TF32.
    assert_within_budget(actual, eager, exact, torch.float16, most=0.6)


@interpreted
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # read by opcheck itself
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_operators_are_registered_as_pytorch_wants_them(
    requires_grad: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    made = Noise(sample_keys(range(2), 0)).draw(3 * 5, 5)
    x = [torch.randn(2, 5, 12, generator=generator).to(dtype) for _ in range(5)]
    # Not contiguous, as slices are.
    x = [torch.cat([t, t], 2)[..., :12].requires_grad_(requires_grad) for t in x]
    hashes = made.rows.flatten(1), made.columns.flatten(1)
    torch.library.opcheck(ops.causal_attention, (*x[:3], *hashes, 3, DROPOUT))
    if not requires_grad:
        lse = torch.randn(2, 15, generator=generator).to(ops.lse_dtype(dtype))
        arguments = (*x[:3], *hashes, x[3], lse, x[4], 3, DROPOUT)
        torch.library.opcheck(ops.causal_attention_backward, arguments)


@interpreted
def test_auto_takes_parts_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "launch", None)
    problem = Problem((1, 1, 4, 8, 1.0), torch.float64)
    expected = run(problem, "torch")["output"]
    assert torch.equal(run(problem, "auto")["output"], expected)


@interpreted
@pytest.mark.parametrize(
    ("size", "dtype", "rule"),
    [
        (65, torch.float32, "heads must be at most 64 wide; got 65"),
        (8, torch.bfloat16, "interpreter computes bfloat16 wrongly"),
    ],
)
def test_says_why_kernels_cannot_run(size: int, dtype: torch.dtype, rule: str) -> None:
    x = torch.zeros(1, 1, 4, size, dtype=dtype)
    assert rule in (causal.why_not(x) or "")
    with pytest.raises(ValueError, match=rule):
        causal_attention(x, x, x, 0.1, Noise(sample_keys(range(1), 0)), "triton")


@interpreted
@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (2, 2, 0, 8)])
def test_empty_tensors_are_fine(shape: tuple[int, int, int, int]) -> None:
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    noise = Noise(sample_keys(range(shape[0]), 0))
    output = causal_attention(x, x, x, 0.1, noise, "triton")
    assert output.shape == shape
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape


CUDA = torch.device("cuda")


def on_a_gpu(test: Any) -> Any:
    return pytest.mark.gpu(
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test)
    )


@on_a_gpu
@pytest.mark.parametrize("shape", CASES)
def test_the_gpu_equals_the_whole_table_in_float64(shape: Shape) -> None:
    problem = Problem(shape, torch.float64, CUDA)
    actual = run(problem, "triton")
    oracle = run(problem, "eager")
    assert_within_budget(actual, oracle, oracle, torch.float64)


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", CASES)
def test_the_gpus_error_is_within_twice_the_eager_error(shape: Shape, dtype: torch.dtype) -> None:
    problem = Problem(shape, dtype, CUDA)
    actual = run(problem, "triton")
    exact = run(problem.double(), "eager")
    assert_within_budget(actual, run(problem, "eager"), exact, dtype)


@on_a_gpu
@pytest.mark.usefixtures("tf32")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
@pytest.mark.parametrize("shape", CASES)
def test_the_gpus_error_with_tf32_is_within_twice_the_eager_error(shape: Shape) -> None:
    problem = Problem(shape, torch.float32, CUDA)
    actual = run(problem, "triton")
    with GPUProducts(tf32=True):  # which cuBLAS takes for some shapes alone
        eager = run(problem, "eager")
    assert_within_budget(actual, eager, run(problem.double(), "eager"), torch.float16)


@on_a_gpu
def test_a_hundred_runs_give_the_same_bits() -> None:
    problem = Problem((4, 8, 300, 24, 1.0), torch.bfloat16, CUDA)
    first = run(problem, "triton")
    for _ in range(99):
        for name, value in run(problem, "triton").items():
            assert torch.equal(value, first[name]), name


@interpreted
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_second_order_gradients_are_refused(backend: str) -> None:
    problem = Problem((2, 2, 9, 8, 1.0), torch.float32)
    tensors = [problem.q, problem.k, problem.v]
    output = causal_attention(*tensors, DROPOUT, Noise(problem.keys), backend)
    for gradient in torch.autograd.grad(output.sum(), tensors, create_graph=True):
        with pytest.raises(NotImplementedError, match=r'second-order .* use backend="reference"'):
            torch.autograd.grad(gradient.sum(), tensors, retain_graph=True)
