"""What every backend must do: the paper's listing, implicit gradients, masks, stopping."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslots_kernels import slot_attention
from fastslots_kernels.testing import Problem
from tests.kernels.cases import Case, make_problem, run

BACKENDS = ["triton", "torch", "reference"]


def figure_two(module: nn.Module, inputs: Tensor, slots: Tensor, num_iterations: int) -> Tensor:
    """The paper's listing with epsilon = 0, where it agrees with the public SLATE code."""
    x = module.norm_inputs(inputs)
    k, v = module.project_k(x), module.project_v(x)

    def step(slots: Tensor) -> Tensor:
        b, num_slots, d = slots.shape
        q = module.project_q(module.norm_slots(slots))
        attn = F.softmax(torch.einsum("bkd,bqd->bqk", k * d**-0.5, q), dim=1)
        attn = attn / attn.sum(dim=2, keepdim=True)
        updates = torch.einsum("bqv,bvd->bqd", attn, v)
        slots = module.gru(updates.reshape(-1, d), slots.reshape(-1, d)).view(b, num_slots, d)
        return slots + module.mlp(module.norm_mlp(slots))

    for _ in range(num_iterations):
        slots = step(slots)
    return step(slots.detach())


def call(problem: Problem, backend: str, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    options = {"num_iterations": 3, **problem.options, **options}
    weights = problem.weights
    new, attn, used = slot_attention(
        problem.inputs, problem.slots, weights, mask=problem.mask, backend=backend, **options
    )
    assert attn is not None
    return new, attn, used


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_papers_listing_with_its_gradients(backend: str) -> None:
    problem = make_problem(Case(options={"epsilon": 0.0}))
    problem.d_attn.zero_()
    actual = run(problem, backend)

    problem.module.zero_grad()
    inputs = problem.inputs.clone().requires_grad_()
    new = figure_two(problem.module, inputs, problem.slots, 3)
    new.backward(problem.d_slots)
    torch.testing.assert_close(actual["slots"], new, rtol=0, atol=1e-12)
    torch.testing.assert_close(actual["d_inputs"], inputs.grad, rtol=0, atol=1e-11)
    for name, parameter in problem.weights.named_tensors().items():
        torch.testing.assert_close(actual[f"d_{name}"], parameter.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("terms", [1, 2, 4])
def test_neumann_terms_sum_powers_of_the_jacobian_at_the_fixed_point(
    backend: str, terms: int
) -> None:
    problem = make_problem(Case(b=1, n=9, d=4, k=2))
    options = {"neumann_terms": terms, "init_gradient": "straight-through"}
    problem.d_attn.zero_()
    actual = run(problem, backend, **options)

    found = call(problem, "reference", num_iterations=3, gradient="unrolled")[0].detach()
    weights = problem.weights

    def step(slots: Tensor) -> Tensor:
        return slot_attention(
            problem.inputs,
            slots,
            weights,
            num_iterations=1,
            gradient="unrolled",
            backend="reference",
        )[0]

    size = found.numel()
    jacobian = torch.autograd.functional.jacobian(step, found).reshape(size, size)
    total = term = problem.d_slots.flatten()
    for _ in range(terms - 1):
        term = jacobian.T @ term
        total = total + term
    problem.module.zero_grad()
    step(found).backward(total.view_as(found))
    for name, parameter in problem.weights.named_tensors().items():
        torch.testing.assert_close(actual[f"d_{name}"], parameter.grad, rtol=0, atol=1e-9)
    expected = (jacobian.T @ total).view_as(found)
    torch.testing.assert_close(actual["d_slots"], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_initial_slots_get_no_gradient_from_the_plain_implicit_step(backend: str) -> None:
    problem = make_problem(Case())
    problem.slots.requires_grad_()
    new, attn, _ = call(problem, backend)
    (new.sum() + attn.sum()).backward()
    assert problem.slots.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_implicit_runs_one_step_more_than_unrolled(backend: str) -> None:
    problem = make_problem(Case())
    implicit, _, used = call(problem, backend, num_iterations=3)
    unrolled, _, steps = call(problem, backend, num_iterations=4, gradient="unrolled")
    torch.testing.assert_close(implicit, unrolled)
    assert (int(used), int(steps)) == (3, 4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [1, 2])
def test_masked_inputs_count_as_absent_and_may_hold_nan(backend: str, heads: int) -> None:
    problem = make_problem(Case(b=1, masked=True, options={"num_heads": heads}))
    assert problem.mask is not None
    keep = problem.mask[0]
    # As autograd makes it of a loss that does not look at masked attention but has no derivative at 0.
    problem.d_attn[:, ~keep] = torch.nan
    masked = run(problem, backend)
    assert not keep.all()
    problem.inputs, problem.d_attn = problem.inputs[:, keep], problem.d_attn[:, keep]
    problem.mask = None
    without = run(problem, backend)
    torch.testing.assert_close(masked["slots"], without["slots"])
    torch.testing.assert_close(masked["attn"][:, keep], without["attn"])
    torch.testing.assert_close(masked["d_inputs"][:, keep], without["d_inputs"])
    torch.testing.assert_close(masked["d_project_k"], without["d_project_k"])
    assert (masked["attn"][:, ~keep] == 0).all()
    assert (masked["d_inputs"][:, ~keep] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "loss",
    [
        lambda attn, valid: -(attn * attn.log())[valid].sum(),
        lambda attn, valid: attn.sqrt().masked_fill(~valid[..., None], 0).sum(),
        lambda attn, valid: torch.where(valid[..., None], attn / attn.sum(-1, True), 0)[
            ..., 0
        ].sum(),
    ],
    ids=["entropy", "root", "ratio"],
)
def test_a_loss_of_valid_attention_alone_has_finite_gradients(backend: str, loss: Any) -> None:
    problem = make_problem(Case(masked=True))
    assert problem.mask is not None
    inputs = problem.inputs.clone().requires_grad_()
    weights = problem.weights
    gradients = []
    for name in (backend, "reference"):
        _, attn, _ = slot_attention(
            inputs, problem.slots, weights, num_iterations=2, mask=problem.mask, backend=name
        )
        tensors = [inputs, weights.project_q, weights.project_k, weights.norm_inputs_bias]
        gradients.append(torch.autograd.grad(loss(attn, problem.mask), tensors))
    for gradient, oracle in zip(*gradients, strict=True):
        assert oracle.isfinite().all()
        torch.testing.assert_close(gradient, oracle, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["all-masked", "no-inputs"])
def test_an_image_without_inputs_gets_zero_updates(backend: str, how: str) -> None:
    problem = make_problem(Case(options={"num_iterations": 0}))
    if how == "all-masked":
        problem.mask = torch.ones(2, 13, dtype=torch.bool)
        problem.mask[1] = False
    else:
        problem.inputs, problem.d_attn = problem.inputs[:, :0], problem.d_attn[:, :0]
    result = run(problem, backend)
    module, slots = problem.module, problem.slots[1]
    new = module.gru(torch.zeros_like(slots), slots)
    new = new + module.mlp(module.norm_mlp(new))
    torch.testing.assert_close(result["slots"][1], new.detach())
    assert all(value.isfinite().all() for value in result.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_works_with_gradients(backend: str) -> None:
    problem = make_problem(Case())
    for name in ("inputs", "slots", "d_slots", "d_attn"):
        setattr(problem, name, getattr(problem, name)[:0])
    result = run(problem, backend)
    assert result["slots"].shape == (0, 3, 8)
    assert result["attn"].shape == (0, 13, 3)
    assert (result["d_project_v"] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_the_slots_permutes_the_result(backend: str) -> None:
    problem = make_problem(Case(options={"num_heads": 2}))
    new, attn, _ = call(problem, backend)
    order = torch.tensor([2, 0, 1])
    problem.slots = problem.slots[:, order]
    permuted, permuted_attn, _ = call(problem, backend)
    torch.testing.assert_close(permuted, new[:, order])
    torch.testing.assert_close(permuted_attn, attn[..., order])


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_sums_to_one_over_the_slots(backend: str) -> None:
    _, attn, _ = call(make_problem(Case(options={"num_heads": 2, "epsilon": 0.5})), backend)
    torch.testing.assert_close(attn.sum(-1), torch.ones_like(attn[..., 0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient", ["neumann", "unrolled"])
def test_tolerance_stops_when_every_image_has_converged(backend: str, gradient: str) -> None:
    problem = make_problem(Case())
    path = [problem.slots]
    for _ in range(12):
        problem.slots = path[-1]
        path.append(call(problem, "reference", num_iterations=1, gradient="unrolled")[0].detach())
    problem.slots = path[0]
    residuals = [
        float(((b - a).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max())
        for a, b in pairwise(path)
    ]
    expected = 5
    tolerance = residuals[expected - 1] * (1 + 1e-6)
    assert min(residuals[: expected - 1]) > tolerance
    new, _, used = call(problem, backend, num_iterations=12, tolerance=tolerance, gradient=gradient)
    assert int(used) == expected
    steps = expected + (gradient == "neumann")
    torch.testing.assert_close(new, path[steps])


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_gives_the_same_slots_as_training(backend: str) -> None:
    problem = make_problem(Case())
    new, attn, _ = call(problem, backend)
    with torch.no_grad():
        plain, plain_attn, _ = call(problem, backend)
    assert new.requires_grad
    assert not plain.requires_grad
    torch.testing.assert_close(plain, new, rtol=0, atol=0)
    torch.testing.assert_close(plain_attn, attn, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tolerance_waits_for_the_slowest_image(backend: str) -> None:
    problem = make_problem(Case(options={"gradient": "unrolled"}))
    found = call(problem, "reference", num_iterations=300)[0].detach()
    problem.slots = torch.stack([problem.slots[0], found[1]])
    _, _, used = call(problem, backend, num_iterations=6, tolerance=1e-6)
    assert int(used) > 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_later_call_leaves_the_returned_attention_as_it_was(backend: str) -> None:
    problem = make_problem(Case())
    with torch.no_grad():
        _, attn, _ = call(problem, backend)
        before = attn.clone()
        problem.slots = problem.slots + 1
        _, other, _ = call(problem, backend)
    torch.testing.assert_close(attn, before, rtol=0, atol=0)
    assert not torch.equal(other, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient", ["neumann", "unrolled"])
@pytest.mark.parametrize("heads", [1, 2])
def test_results_may_be_changed_in_place(backend: str, gradient: str, heads: int) -> None:
    problem = make_problem(Case(options={"gradient": gradient, "num_heads": heads}))

    def gradients(in_place: bool) -> list[Tensor]:
        new, attn, _ = call(problem, backend)
        if in_place:
            new += 1
            new[:, 0] *= 2
            attn *= 3
        else:
            new = torch.cat([2 * (new[:, :1] + 1), new[:, 1:] + 1], dim=1)
            attn = 3 * attn
        loss = new.square().sum() + attn.square().sum()
        return list(torch.autograd.grad(loss, list(problem.module.parameters())))

    torch.testing.assert_close(gradients(True), gradients(False), rtol=0, atol=1e-12)
    with torch.no_grad():
        new, attn, _ = call(problem, backend)
        new += 1
        attn += 1
