"""The fused kernels and the projection-free form in plain PyTorch against the usual form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslots_kernels import SlotAttentionWeights, slot_attention
from fastslots_kernels.testing import Problem
from tests.kernels.cases import (
    Case,
    assert_equal_in_float64,
    assert_within_budget,
    make_problem,
    run,
)

BACKENDS = ["triton", "torch"]

CASES = [
    pytest.param(Case(), id="ragged"),
    pytest.param(Case(options={"num_heads": 4}), id="four-heads"),
    pytest.param(Case(masked=True, options={"num_heads": 2}), id="masked-two-heads"),
    pytest.param(Case(k=1), id="one-slot"),
    pytest.param(Case(n=1), id="one-input"),
    pytest.param(Case(c=8, d=8, options={"epsilon": 0.1}), id="large-epsilon"),
    pytest.param(Case(masked=True, options={"epsilon": 0.1}), id="masked-large-epsilon"),
    pytest.param(Case(options={"num_iterations": 0}), id="no-iterations"),
    pytest.param(Case(options={"neumann_terms": 3}), id="three-neumann-terms"),
    pytest.param(
        Case(masked=True, options={"init_gradient": "straight-through", "neumann_terms": 2}),
        id="masked-straight-through",
    ),
    pytest.param(Case(options={"gradient": "unrolled", "num_iterations": 5}), id="unrolled"),
    pytest.param(
        Case(masked=True, options={"gradient": "unrolled", "num_heads": 2}), id="unrolled-masked"
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_the_reference_in_float64(case: Case, backend: str) -> None:
    problem = make_problem(case)
    assert_equal_in_float64(run(problem, backend), run(problem, "reference"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10, deadline=None)
@given(
    b=st.integers(1, 2),
    n=st.integers(1, 40),
    c=st.integers(2, 17),
    width=st.integers(1, 5),
    heads=st.integers(1, 3),
    k=st.integers(1, 6),
    masked=st.booleans(),
    gradient=st.sampled_from(["neumann", "unrolled"]),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference_at_any_size(
    backend: str,
    b: int,
    n: int,
    c: int,
    width: int,
    heads: int,
    k: int,
    masked: bool,
    gradient: str,
    seed: int,
) -> None:
    options = {"num_heads": heads, "gradient": gradient, "num_iterations": 2}
    case = Case(b=b, n=n, c=c, d=2 * width * heads, k=k, masked=masked, options=options)
    problem = make_problem(case, seed=seed)
    assert_equal_in_float64(run(problem, backend), run(problem, "reference"))


@pytest.mark.slow
@pytest.mark.usefixtures("gpu_products")
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("triton", torch.float32),
        ("triton", torch.float16),  # and bfloat16 on a GPU: the interpreter computes it wrongly
        ("torch", torch.float32),
        ("torch", torch.bfloat16),
        ("torch", torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(n=100, c=24, d=16, k=5, m=20), id="ragged"),
        pytest.param(
            Case(n=100, c=24, d=16, k=5, masked=True, options={"num_heads": 2}), id="masked"
        ),
        pytest.param(Case(n=100, c=24, d=16, k=5, mean=30.0), id="large-mean"),
        pytest.param(Case(n=64, c=32, d=32, k=4, options={"gradient": "unrolled"}), id="unrolled"),
    ],
)
def test_error_is_within_twice_the_eager_error(
    case: Case, backend: str, dtype: torch.dtype
) -> None:
    problem = make_problem(case, dtype)
    oracle = run(problem.to(torch.float64), "reference")
    assert_within_budget(run(problem, backend), run(problem, "reference"), oracle, dtype)


def _call(problem: Problem, backend: str, **options: Any) -> Any:
    """`slot_attention` as a function of inputs, slots and weight tensors, for gradcheck."""
    weights = problem.weights

    def function(inputs: torch.Tensor, slots: torch.Tensor, *tensors: torch.Tensor) -> Any:
        return slot_attention(
            inputs,
            slots,
            SlotAttentionWeights.from_tensors(tensors, weights.norm_eps),
            mask=problem.mask,
            backend=backend,
            **{**problem.options, **options},
        )[:2]

    tensors = [t.detach().clone().requires_grad_() for t in weights.named_tensors().values()]
    return function, tensors


def _gradcheck(function: Any, tensors: tuple[torch.Tensor, ...], backend: str) -> bool:
    """In one random direction where kernels are interpreted, which for all entries takes minutes."""
    return torch.autograd.gradcheck(function, tensors, fast_mode=backend == "triton")


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_offsets")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(n=5, c=4, d=4, k=2, m=3, options={"num_iterations": 2}), id="two-steps"),
        pytest.param(
            Case(n=5, c=3, d=4, k=2, m=3, options={"num_iterations": 1, "num_heads": 2}),
            id="two-heads",
        ),
    ],
)
def test_gradcheck_passes_through_unrolled_steps(case: Case, backend: str) -> None:
    problem = make_problem(case)
    function, tensors = _call(problem, backend, gradient="unrolled")
    inputs, slots = problem.inputs.requires_grad_(), problem.slots.requires_grad_()
    assert _gradcheck(function, (inputs, slots, *tensors), backend)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_offsets")
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_passes_through_the_implicit_step_with_a_mask(backend: str) -> None:
    problem = make_problem(Case(b=1, n=3, c=2, d=2, k=2, m=2, masked=True), seed=1)
    problem.inputs = problem.inputs.nan_to_num(7.0)
    function, tensors = _call(problem, backend, gradient="neumann", num_iterations=0)
    inputs = problem.inputs.requires_grad_()
    assert _gradcheck(function, (inputs, problem.slots, *tensors), backend)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_gradient_of_the_slots_alone_leaves_the_attention_out(backend: str) -> None:
    problem = make_problem(Case())
    both = run(problem, backend)
    problem.d_attn.zero_()
    slots_only = run(problem, backend)
    inputs = problem.inputs.clone().requires_grad_()
    new, attn, _ = slot_attention(
        inputs,
        problem.slots,
        problem.weights,
        num_iterations=3,
        return_attn=False,
        backend=backend,
    )
    new.backward(problem.d_slots)
    assert attn is None
    torch.testing.assert_close(inputs.grad, slots_only["d_inputs"])
    assert (both["d_inputs"] - slots_only["d_inputs"]).abs().max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_attention_alone_equals_the_reference(backend: str) -> None:
    problem = make_problem(Case(options={"num_heads": 2}))
    grads = []
    for name in (backend, "reference"):
        inputs = problem.inputs.clone().requires_grad_()
        _, attn, _ = slot_attention(
            inputs,
            problem.slots,
            problem.weights,
            num_iterations=2,
            num_heads=2,
            backend=name,
        )
        assert attn is not None
        attn.backward(problem.d_attn)
        grads.append(inputs.grad)
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_the_weights_alone_equal_the_reference(backend: str) -> None:
    problem = make_problem(Case())
    grads = []
    for name in (backend, "reference"):
        problem.module.zero_grad()
        new, _, _ = slot_attention(
            problem.inputs,
            problem.slots,
            problem.weights,
            num_iterations=2,
            backend=name,
        )
        new.backward(problem.d_slots)
        grads.append([p.grad.clone() for p in problem.module.parameters() if p.grad is not None])
    assert len(grads[0]) == 17
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs_give_the_same_result(backend: str) -> None:
    problem = make_problem(Case())
    expected = run(problem, backend)
    problem.inputs = problem.inputs.transpose(0, 1).contiguous().transpose(0, 1)
    problem.slots = problem.slots.mT.contiguous().mT
    assert not problem.inputs.is_contiguous()
    assert not problem.slots.is_contiguous()
    assert_equal_in_float64(run(problem, backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_slots_work_where_only_the_attention_is_used(backend: str) -> None:
    problem = make_problem(Case())
    slots = problem.slots.mT.contiguous().mT.requires_grad_()
    grads = []
    for name in (backend, "reference"):
        weights = problem.weights
        _, attn, _ = slot_attention(
            problem.inputs, slots, weights, num_iterations=1, gradient="unrolled", backend=name
        )
        assert attn is not None
        grads.append(torch.autograd.grad(attn, slots, problem.d_attn)[0])
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("backend", "dtype"), [("triton", torch.float16), ("torch", torch.bfloat16)], ids=str
)
def test_autocast_error_is_within_twice_the_eager_error(backend: str, dtype: torch.dtype) -> None:
    problem = make_problem(Case(n=100, c=24, d=16, k=5), torch.float32)
    oracle = run(problem.to(torch.float64), "reference")
    with torch.autocast("cpu", dtype):
        actual, eager = run(problem, backend), run(problem, "reference")
    assert actual["slots"].dtype == torch.float32
    assert_within_budget(actual, eager, oracle, dtype)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("triton", torch.float16),
        ("torch", torch.float16),
        ("torch", torch.bfloat16),
        ("reference", torch.bfloat16),
    ],
    ids=str,
)
def test_attention_under_autocast_has_the_dtype_of_the_slots(
    backend: str, dtype: torch.dtype
) -> None:
    problem = make_problem(Case(), torch.float32)
    with torch.autocast("cpu", dtype):
        result = run(problem, backend)
    assert result["attn"].dtype == torch.float32
    # A softmax in 16 bits would not sum to 1.
    sums = result["attn"].double().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("epsilon", [1e-8, 1e-4, 3.0, 1e3, 3e4], ids=str)
def test_float16_has_every_epsilon_and_slots_that_no_input_chooses(
    backend: str, epsilon: float
) -> None:
    """Where no input chooses a slot, its divisor is 13 epsilon, and its gradient as large as the inverse."""
    options = {"epsilon": epsilon, "gradient": "unrolled", "num_iterations": 1}
    case = Case(b=8, c=24, d=16, k=5, m=20, options=options)
    problem = make_problem(case, torch.float32, seed=1).steady()
    with torch.no_grad():
        problem.module.norm_inputs.bias.copy_(torch.linspace(-3, 3, 24))
        problem.module.project_q.weight.mul_(5)
    problem = problem.to(torch.float16)
    oracle = run(problem.to(torch.float64), "reference")
    assert oracle["attn"].sum(1).amin() < 1e-10
    eager = run(problem, "reference")
    assert_within_budget(run(problem, backend), eager, oracle, torch.float16)
    # The eager reference itself: rounding of weights and inputs, no more.
    assert (eager["slots"].double() - oracle["slots"]).abs().max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient", ["neumann", "unrolled"])
def test_compiles_as_one_graph(gradient: str, backend: str) -> None:
    problem = make_problem(Case(masked=True, options={"gradient": gradient, "num_iterations": 2}))
    expected = run(problem, backend)
    function, tensors = _call(problem, backend)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = problem.inputs.clone().requires_grad_()
    new, attn = compiled(inputs, problem.slots, *tensors)
    torch.autograd.backward([new, attn], [problem.d_slots, problem.d_attn])
    torch.testing.assert_close(new, expected["slots"])
    torch.testing.assert_close(inputs.grad, expected["d_inputs"])
    for tensor, name in zip(tensors, problem.weights.named_tensors(), strict=True):
        torch.testing.assert_close(tensor.grad, expected[f"d_{name}"])
