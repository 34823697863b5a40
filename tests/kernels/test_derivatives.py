"""Second-order and forward-mode derivatives: right with the reference, refused by the fast forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastslots import SlotAttention

# PyTorch does that itself when it first takes forward-mode derivatives.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

FAST = ["triton", "torch"]
ADVICE = 'use backend="reference"'


def make(backend: str, **options: Any) -> tuple[SlotAttention, Tensor, Tensor]:
    torch.manual_seed(0)
    module = SlotAttention(2, 3, 6, 4, 5, backend=backend, **options).double()
    inputs = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    return module, inputs, torch.randn(2, 3, 4, dtype=torch.float64)


def penalty(module: SlotAttention, inputs: Tensor, slots: Tensor) -> Tensor:
    """The squared norm of the gradient of a loss, which is what penalties and Hessians begin with."""
    new, attn = module(inputs, slots)
    assert attn is not None
    loss = new.square().sum() + (attn[..., 0] * torch.arange(5)).sum()
    (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
    assert gradient.requires_grad
    return gradient.square().sum()


@pytest.mark.parametrize("gradient", ["neumann", "unrolled"])
def test_the_reference_has_second_order_gradients(gradient: str) -> None:
    module, inputs, slots = make("reference", gradient=gradient)
    # The implicit gradient is that of one step from slots that count as constant.
    steps = 1
    if gradient == "neumann":
        slots, module.num_iterations = module(inputs, slots, num_iterations=1)[0].detach(), 0
    else:
        module.num_iterations = steps
    tensors = [inputs, *module.parameters()]

    def value(*_: Tensor) -> Tensor:
        return penalty(module, inputs, slots)

    assert torch.autograd.gradcheck(value, tensors)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("gradient", ["neumann", "unrolled"])
def test_second_order_gradients_of_fast_forms_are_refused(backend: str, gradient: str) -> None:
    module, inputs, slots = make(backend, gradient=gradient)
    value = penalty(module, inputs, slots)
    torch.testing.assert_close(value, penalty(*make("reference", gradient=gradient)))
    with pytest.raises(NotImplementedError, match=f'"{backend}" has no second-order .* {ADVICE}'):
        value.backward()


@pytest.mark.parametrize("backend", FAST)
def test_a_gradient_of_a_linear_loss_is_not_cut_off(backend: str) -> None:
    module, inputs, slots = make(backend)
    loss = module(inputs, slots)[0].sum()  # whose own gradient is a constant
    gradients = torch.autograd.grad(loss, [inputs, *module.parameters()], create_graph=True)
    for gradient in gradients:
        with pytest.raises(NotImplementedError, match=ADVICE):
            torch.autograd.grad(gradient.sum(), inputs, retain_graph=True)


def test_forward_mode_of_the_reference_agrees_with_reverse_mode() -> None:
    module, inputs, slots = make("reference")
    direction = torch.randn_like(inputs)
    _, along = torch.func.jvp(
        lambda x: module(x, slots)[0].square().sum(), (inputs.detach(),), (direction,)
    )
    (gradient,) = torch.autograd.grad(module(inputs, slots)[0].square().sum(), inputs)
    torch.testing.assert_close(along, (gradient * direction).sum())


def dual(module: SlotAttention, inputs: Tensor, slots: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return module(forward_ad.make_dual(inputs.detach(), torch.ones_like(inputs)), slots)[0]


def dual_weight(module: SlotAttention, inputs: Tensor, slots: Tensor) -> Tensor:
    weight = module.project_k.weight.detach()
    with forward_ad.dual_level():
        duals = {"project_k.weight": forward_ad.make_dual(weight, torch.ones_like(weight))}
        return torch.func.functional_call(module, duals, (inputs.detach(), slots))[0]


def compiled_jvp(module: SlotAttention, inputs: Tensor, slots: Tensor) -> Tensor:
    compiled = torch.compile(lambda x: module(x, slots)[0], backend="eager")
    try:
        return torch.func.jvp(compiled, (inputs.detach(),), (inputs.detach(),))[1]
    finally:
        torch._dynamo.reset()  # what it knows of tensors in a transform is not for other tests


TRANSFORMS: dict[str, Callable[[SlotAttention, Tensor, Tensor], Any]] = {
    "jvp": lambda m, x, s: torch.func.jvp(lambda x: m(x, s)[0], (x.detach(),), (x.detach(),)),
    "grad": lambda m, x, s: torch.func.grad(lambda x: m(x, s)[0].sum())(x.detach()),
    "hessian": lambda m, x, s: torch.func.hessian(lambda x: m(x, s)[0].sum())(x.detach()),
    "vmap": lambda m, x, s: torch.vmap(lambda x, s: m(x[None], s[None])[0])(x, s),
    "compiled-jvp": compiled_jvp,
    "dual": dual,
    "dual-weight": dual_weight,
}


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of the compiler
@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_fast_forms_are_refused(name: str, backend: str, grad: bool) -> None:
    module, inputs, slots = make(backend)
    with torch.set_grad_enabled(grad):
        if backend == "reference":
            TRANSFORMS[name](module, inputs, slots)
            return
        with pytest.raises(NotImplementedError, match=f'"{backend}" has no .*: {ADVICE}'):
            TRANSFORMS[name](module, inputs, slots)


@pytest.mark.parametrize("backend", FAST)
def test_other_tensors_may_have_tangents(backend: str) -> None:
    module, inputs, slots = make(backend)
    with forward_ad.dual_level():
        other = forward_ad.make_dual(torch.ones(3), torch.ones(3))
        module(inputs, slots)[0].sum().backward()
        assert forward_ad.unpack_dual(2 * other).tangent is not None
    assert inputs.grad is not None
