"""Seeded problems and the error budget that all tests and tools share."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fastslots_kernels import slot_attention
from fastslots_kernels.fused.sizes import Sizes
from fastslots_kernels.testing import SHAPES, Problem, Results, compare, judge, largest

SIZES = Sizes(2, 13, 10, 3, 8, 2, 6)


def test_is_imported_without_triton() -> None:
    program = "import sys; import fastslots_kernels.testing; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_papers_shapes_are_within_the_limits_of_the_kernels() -> None:
    assert all(
        s.virtual <= 64 and max(s.input_size, s.slot_size) <= 256 for s, _ in SHAPES.values()
    )


def test_a_problem_is_the_same_numbers_rounded() -> None:
    double, single = (
        Problem.make(SIZES, masked=True),
        Problem.make(SIZES, torch.float32, masked=True),
    )
    for name, leaf in double.to(torch.float32).leaves.items():
        assert leaf.is_leaf
        assert leaf.requires_grad
        torch.testing.assert_close(leaf, single.leaves[name], rtol=0, atol=0, equal_nan=True)
    other = Problem.make(SIZES, torch.float32, masked=True, seed=1)
    assert not torch.equal(other.slots, single.slots)


def test_a_problem_has_masked_inputs_that_are_nan() -> None:
    problem = Problem.make(SIZES, masked=True)
    assert problem.mask is not None
    assert torch.equal(problem.inputs.isnan().all(2), ~problem.mask)
    assert (~problem.mask).any()


def test_options_reach_the_call() -> None:
    problem = Problem.make(SIZES, num_iterations=1, epsilon=0.1)
    outputs, gradients = problem.results("torch")
    new, attn, _ = slot_attention(
        problem.inputs,
        problem.slots,
        problem.weights,
        num_heads=2,
        num_iterations=1,
        epsilon=0.1,
        backend="torch",
    )
    assert torch.equal(outputs["slots"], new)
    assert attn is not None
    assert torch.equal(outputs["attn"], attn)
    assert gradients.keys() == problem.leaves.keys()
    assert torch.equal(gradients["slots"], torch.zeros_like(problem.slots))  # implicit


def test_a_problem_names_a_wrong_number_of_heads() -> None:
    with pytest.raises(ValueError, match="slot_size must be a multiple of num_heads 3; got 8"):
        Problem.make(SIZES._replace(num_heads=3))


def test_errors_are_of_all_outputs_and_gradients() -> None:
    problem = Problem.make(SIZES, torch.float32).steady()
    rows = problem.errors("torch")
    assert [row.name for row in rows] == [
        "slots",
        "attn",
        *(f"d {name}" for name in problem.leaves),
    ]
    assert all(row.ok for row in rows), rows
    assert len({row.scale for row in rows[2:]}) == 1


def test_a_wrong_gradient_is_judged_by_the_largest_of_all() -> None:
    right = {"a": torch.tensor([2.0]).double(), "b": torch.tensor([1e-20]).double()}
    wrong = right | {"b": torch.tensor([1e-10]).double()}
    oracle = Results({}, right)
    assert all(row.ok for row in judge(Results({}, wrong), oracle, oracle, torch.float64))
    wrong["b"] += 1e-8
    rows = judge(Results({}, wrong), oracle, oracle, torch.float64)
    assert [(row.name, row.ok) for row in rows] == [("d a", True), ("d b", False)]


def test_bound_is_twice_the_eager_error_and_one_rounding_of_the_largest_entry() -> None:
    oracle = {"a": torch.tensor([1.0, -4.0], dtype=torch.float64)}
    eager, actual = {"a": torch.tensor([1.25, -4.0])}, {"a": torch.tensor([1.0, -4.5])}
    (row,) = compare(actual, eager, oracle, torch.float32)
    eps = torch.finfo(torch.float32).eps
    assert row == ("a", 0.5, 0.25, 4.0, 0.5 + 4 * eps)
    assert row.ok
    (row,) = compare({"a": torch.tensor([1.0, -4.5001])}, eager, oracle, torch.float32)
    assert not row.ok
    (row,) = compare(actual, eager, oracle, torch.float32, scale=1e6)
    assert row.bound == 0.5 + 1e6 * eps


def test_bound_in_float64_is_a_billionth_of_the_scale() -> None:
    oracle = {"a": torch.tensor([2.0], dtype=torch.float64)}
    for error, ok in ((1.9e-9, True), (2.1e-9, False)):
        (row,) = compare({"a": oracle["a"] + error}, oracle, oracle, torch.float64)
        assert row.ok == ok


def test_nan_is_never_within_the_bound() -> None:
    oracle = {"a": torch.tensor([2.0, 1.0], dtype=torch.float64)}
    nan = {"a": torch.tensor([2.0, float("nan")])}
    assert not compare(nan, {"a": oracle["a"].float()}, oracle, torch.float32)[0].ok
    assert not compare(nan, nan, oracle, torch.float32)[0].ok


def test_largest_is_over_all_tensors() -> None:
    assert largest(torch.tensor([1.0, -3.0]), torch.tensor([[2.0]]), torch.empty(0)) == 3
    assert largest(torch.empty(0)) == 0
