import dataclasses
import re

import pytest
import torch

from fastslots.benchmark import (
    Call,
    Problem,
    Provider,
    check_call,
    markdown,
    run_benchmark,
)
from fastslots.benchmark.attention import calls, cases
from fastslots.benchmark.attention.check import BY_ORACLE
from tests.benchmark.attention.cases import CPU, NO_GRAD, REFERENCE, TINY, TORCH

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("gradient", cases.GRADIENTS)
def test_right_results_pass_the_check(dtype, gradient):
    problem = Problem.make(dataclasses.replace(TINY, dtype=dtype), CPU)
    assert check_call(Call(Provider("torch", gradient), problem, 3)).how == BY_ORACLE


def measured_with(monkeypatch, perturbed, dtype):
    """Results where slots and attention of backend torch are perturbed, at 1 iteration."""
    right = calls.slot_attention

    def wrong(*args, backend, **options):
        slots, attn, used = right(*args, backend=backend, **options)
        return (*perturbed(slots, attn), used) if backend == "torch" else (slots, attn, used)

    monkeypatch.setattr(calls, "slot_attention", wrong)
    case = dataclasses.replace(TINY, dtype=dtype, iterations=(1,))
    return run_benchmark([case], [TORCH, REFERENCE], CPU, repeats=3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wrong", ["slots", "attn"])
def test_a_provider_with_wrong_results_is_left_out_and_the_others_are_timed(
    monkeypatch, dtype, wrong
):
    def perturbed(slots, attn):
        return (slots * 1.001, attn) if wrong == "slots" else (slots, attn + 1e-3)

    measured = measured_with(monkeypatch, perturbed, dtype)
    assert {row.provider for row in measured.rows} == {"reference"}
    (entry,) = measured.wrong
    assert re.match(rf"torch \(implicit, 1 iterations, .*{wrong}.*at most", entry.reason)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_that_is_off_is_recorded_and_the_provider_timed(monkeypatch, dtype):
    """Rounding may switch a hidden unit of the MLP: the time is as good as any."""

    def perturbed(slots, attn):
        slots.register_hook(lambda grad: grad * 1.001)
        return slots, attn

    measured = measured_with(monkeypatch, perturbed, dtype)
    assert not measured.wrong
    errors = {row.provider: row.gradient_error for row in measured.rows}
    assert errors["reference"] <= 1 < errors["torch"]
    (note,) = [line for line in markdown(measured).splitlines() if "gradient is off" in line]
    assert re.match(r"- tiny, torch, implicit, T = 1: a gradient is off by \d+.* times", note)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_provider_with_a_gradient_that_is_not_finite_is_left_out(monkeypatch, bad):
    def perturbed(slots, attn):
        slots.register_hook(lambda grad: grad * bad)
        return slots, attn

    measured = measured_with(monkeypatch, perturbed, "float32")
    assert {row.provider for row in measured.rows} == {"reference"}
    (entry,) = measured.wrong
    assert re.match(r"torch \(implicit, .*gradient of \w+ is not finite", entry.reason)


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
