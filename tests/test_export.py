"""Programs of torch.export: for any batch size, with eager's results and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastslots import SLATE, SlotAttention, SlotInit
from fastslots_kernels.derivatives import is_exporting
from tests.models.slate.small_models import images, initial_slots, small_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch.export itself
]


class Both(nn.Module):
    """As in the README: initial slots, and slot attention from them."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.init = SlotInit(4, 8, kind)
        self.slot_attention = SlotAttention(2, 4, 12, 8, 16, 2, **options)

    def forward(self, inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        slots, attn = self.slot_attention(inputs, self.init(inputs.shape[0]), mask=mask)
        return slots, attn


class Method(nn.Module):
    """A method of a model, as a module."""

    def __init__(self, model: SLATE, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *arguments: Tensor | None) -> Any:
        return getattr(self.model, self.name)(*arguments)


def exported(module: nn.Module, *arguments: Tensor, strict: bool = False) -> nn.Module:
    """The program of a module for any batch size."""
    batch = torch.export.Dim("batch")
    shapes = [{0: batch} for _ in arguments]
    if isinstance(module, Method):  # its arguments are one tuple
        shapes = [tuple(shapes)]
    program = torch.export.export(module, arguments, dynamic_shapes=tuple(shapes), strict=strict)
    return program.module()


def seeded(module: nn.Module, *arguments: Tensor) -> Any:
    torch.manual_seed(1)
    return module(*arguments)


def gradients(module: nn.Module, inputs: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """Of the inputs, and of every parameter that has one."""
    slots, attn = seeded(module, inputs, mask)
    tensors = [inputs, *module.parameters()]
    loss = slots.square().sum() + attn.square().sum()
    for grad, tensor in zip(
        torch.autograd.grad(loss, tensors, allow_unused=True), tensors, strict=True
    ):
        yield torch.zeros_like(tensor) if grad is None else grad


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "gaussian"},
    "tolerance": {"kind": "learned", "tolerance": 0.1},
    "two-terms": {"kind": "learned", "neumann_terms": 2, "init_gradient": "straight-through"},
    "unrolled": {"kind": "gaussian", "gradient": "unrolled"},
}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("tracked", [True, False])
def test_slot_attention_has_eagers_results_and_gradients(
    backend: str, options: dict[str, Any], tracked: bool
) -> None:
    torch.manual_seed(0)
    module = Both(backend=backend, **options).double()
    examples = torch.randn(3, 7, 12, dtype=torch.float64), torch.ones(3, 7, dtype=torch.bool)
    with torch.set_grad_enabled(tracked):
        program = exported(module, *examples)
    assert module.slot_attention.iterations_used is None
    for batch in (1, 5):
        inputs = torch.randn(batch, 7, 12, dtype=torch.float64, requires_grad=True)
        mask = torch.rand(batch, 7) > 0.3
        torch.testing.assert_close(seeded(program, inputs, mask), seeded(module, inputs, mask))
        for grad, expected in zip(
            gradients(program, inputs, mask), gradients(module, inputs, mask), strict=True
        ):
            torch.testing.assert_close(grad, expected)
        with torch.no_grad():
            torch.testing.assert_close(seeded(program, inputs, mask), seeded(module, inputs, mask))


def test_export_may_be_strict() -> None:
    module = Both("gaussian", backend="torch")
    program = exported(module, torch.randn(3, 7, 12), torch.ones(3, 7).bool(), strict=True)
    inputs, mask = torch.randn(5, 7, 12), torch.rand(5, 7) > 0.3
    torch.testing.assert_close(seeded(program, inputs, mask), seeded(module, inputs, mask))


@pytest.mark.parametrize(
    "name",
    ["tokenize", "detokenize", "encode", "token_cross_entropy", "generate", "reconstruct"],
)
@pytest.mark.parametrize("gradient", ["neumann", "unrolled"])
def test_slate_in_eval_mode_has_eagers_results(name: str, gradient: str) -> None:
    model = small_model(num_decoder_blocks=1, num_iterations=1, gradient=gradient).eval()
    module = Method(model, name)

    def arguments(batch: int) -> tuple[Tensor, ...]:
        ids = torch.arange(16 * batch).view(batch, 16) % 40
        slots = initial_slots(batch, dtype=torch.float32)
        given = {"tokenize": (images(batch),), "encode": (ids,), "generate": (slots,)}
        given["reconstruct"] = given["tokenize"]
        given["detokenize"] = given["encode"]
        return given.get(name, (ids, slots))

    program = exported(module, *arguments(3))
    for batch in (1, 5):
        actual, expected = (seeded(m, *arguments(batch)) for m in (program, module))
        torch.testing.assert_close(actual, expected)
    if name == "token_cross_entropy":
        weights = [m.get_parameter("model.out.weight") for m in (program, module)]
        grads = [
            torch.autograd.grad(x, w) for x, w in zip((actual, expected), weights, strict=True)
        ]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("strict", [True, False])
def test_compiling_is_no_exporting(strict: bool) -> None:
    class Told(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if is_exporting() else x

    x = torch.zeros(3)
    compiled = torch.compile(Told(), backend="eager", fullgraph=True)
    assert float(compiled(x).sum()) == 0
    assert float(torch.export.export(Told(), (x,), strict=strict).module()(x).sum()) == 3
    assert float(compiled(x).sum()) == 0
