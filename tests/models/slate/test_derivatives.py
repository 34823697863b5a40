"""SLATE's derivatives of second order and in forward mode: right with the reference, refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastslots.models.slate import SLATE
from fastslots.models.slate.causal_attention import causal_attention
from fastslots.models.slate.cross_entropy import linear_cross_entropy
from fastslots.models.slate.token_sampling import TokenWeights, sample_tokens
from fastslots.noise import Noise, sample_keys
from tests.models.slate.small_models import images, perturbed, small_config

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
KEYS = sample_keys(range(2), 0)
ADVICE = 'use backend="reference"'


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]


def cross_entropy(backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    ids = torch.arange(6).view(2, 3)
    return lambda x, w: linear_cross_entropy(x, w, ids, backend), leaves((2, 3, 4), (7, 4))


def tokens(backend: str, hard: bool = False) -> tuple[Callable[..., Tensor], list[Tensor]]:
    def decoded(x: Tensor, a: Tensor, bias: Tensor, b: Tensor) -> Tensor:
        return sample_tokens(x, TokenWeights(a, bias, b), 0.7, hard, Noise(KEYS), backend).decoded

    return decoded, leaves((2, 3, 4), (7, 4), (7,), (5, 7))


def attention(backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    shape = (2, 2, 5, 3)
    return lambda q, k, v: causal_attention(q, k, v, 0.3, Noise(KEYS), backend), leaves(
        *3 * [shape]
    )


def plain_attention(backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    shape = (2, 2, 5, 3)
    return lambda q, k, v: causal_attention(q, k, v, 0.0, None, backend), leaves(*3 * [shape])


PARTS = [cross_entropy, tokens, attention, plain_attention]


@pytest.mark.parametrize("part", PARTS)
def test_the_reference_of_a_part_equals_the_fast_form(part) -> None:
    function, tensors = part("reference")
    fast, _ = part("torch")
    values = [f(*tensors) for f in (function, fast)]
    torch.testing.assert_close(*values)
    grads = [torch.autograd.grad(value.square().sum(), tensors) for value in values]
    for actual, expected in zip(*grads, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("hard", [False, True])
def test_the_reference_of_hard_tokens_equals_the_fast_form(hard: bool) -> None:
    function, tensors = tokens("reference", hard)
    fast, _ = tokens("torch", hard)
    values = [f(*tensors) for f in (function, fast)]
    torch.testing.assert_close(*values)
    grads = [torch.autograd.grad(value.square().sum(), tensors) for value in values]
    for actual, expected in zip(*grads, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("part", PARTS)
def test_the_reference_of_a_part_has_derivatives_of_second_order(part) -> None:
    function, tensors = part("reference")
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("part", [cross_entropy, tokens, attention])
def test_second_order_gradients_of_a_fast_part_are_refused(part) -> None:
    function, tensors = part("torch")
    gradients = torch.autograd.grad(function(*tensors).sum(), tensors, create_graph=True)
    for gradient in gradients:
        assert gradient.requires_grad
        with pytest.raises(NotImplementedError, match=f"no second-order gradients: {ADVICE}"):
            torch.autograd.grad(gradient.sum(), tensors, retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_forward_mode_of_a_part_is_right_or_refused(part, backend: str) -> None:
    function, tensors = part(backend)
    point = tuple(t.detach() for t in tensors)
    direction = tuple(torch.ones_like(t) for t in tensors)
    if backend == "torch":
        with pytest.raises(NotImplementedError, match=ADVICE):
            torch.func.jvp(function, point, direction)
        return
    _, along = torch.func.jvp(function, point, direction)
    grads = torch.autograd.grad(function(*tensors).sum(), tensors)
    torch.testing.assert_close(along.sum(), torch.stack([g.sum() for g in grads]).sum())


def test_a_temperature_that_learns_needs_the_reference() -> None:
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x, a, bias, b = leaves((2, 3, 4), (7, 4), (7,), (5, 7))
    weights = TokenWeights(a, bias, b)
    with pytest.raises(ValueError, match=r'tau must need no gradient; .*backend="reference"'):
        sample_tokens(x, weights, tau, False, Noise(KEYS))
    assert torch.autograd.gradcheck(
        lambda t: sample_tokens(x, weights, t, False, Noise(KEYS), "reference").decoded, tau
    )


def loss_of(model: SLATE, image: Tensor) -> Tensor:
    out = model(image, 0.7, keys=KEYS)
    return out.cross_entropy + out.mse


def make(backend: str) -> tuple[SLATE, Tensor]:
    torch.manual_seed(0)
    config = small_config(
        backend=backend, dropout=0.2, gradient="neumann", num_decoder_blocks=1, vocab_size=12
    )
    return perturbed(SLATE(config)).double(), images(2, dtype=torch.float64)


def test_the_reference_of_slate_equals_the_fast_form() -> None:
    losses = []
    for backend in ("reference", "torch"):
        model, image = make(backend)
        loss = loss_of(model, image)
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        losses.append([loss.detach(), *grads])
    for actual, expected in zip(*losses, strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_gradient_of_slates_gradient_norm_is_right_with_the_reference() -> None:
    """Along the second gradient, the squared norm changes as that says: central differences."""
    model, image = make("reference")
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Slots are found without a graph: what they are is no function of these derivatives.
    with torch.no_grad():
        model.slot_attn.slot_attention.num_iterations = 0

    def squared_norm(create_graph: bool) -> Tensor:
        loss = loss_of(model, image)
        grads = torch.autograd.grad(loss, parameters, create_graph=create_graph)
        return torch.stack([g.square().sum() for g in grads]).sum()

    direction = torch.autograd.grad(squared_norm(True), parameters)
    slope = torch.stack([d.square().sum() for d in direction]).sum()
    values, step = [], 1e-7 / slope.sqrt()
    for sign in (1, -2):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * step * d)
        values.append(squared_norm(False))
    difference = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(difference, slope, rtol=1e-4, atol=0)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_per_sample_gradients_of_the_reference_add_up() -> None:
    model, image = make("reference")
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(tensors: dict[str, Tensor], one: Tensor, key: Tensor) -> Tensor:
        out = torch.func.functional_call(model, tensors, (one[None], 0.7, False, key[None]))
        return out.cross_entropy + out.mse

    each = torch.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, image, KEYS)
    loss_of(model, image).backward()
    for name, parameter in model.named_parameters():
        if name in each:
            torch.testing.assert_close(each[name].mean(0), parameter.grad)


def test_the_gradient_of_slates_gradient_norm_is_refused_elsewhere() -> None:
    model, image = make("torch")
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss_of(model, image), parameters, create_graph=True)
    with pytest.raises(NotImplementedError, match=ADVICE):
        torch.stack([g.square().sum() for g in grads]).sum().backward()
