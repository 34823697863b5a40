"""What must hold before a training step is timed."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fastslots.benchmark.attention.check import IncorrectResultError
from fastslots.benchmark.step.cases import StepCase
from fastslots.benchmark.step.step import load_public
from fastslots.models.slate import SLATE, SLATEConfig, SLATEOutput
from fastslots.models.slate.official import NAMES
from fastslots.models.slate.reference import PublicSLATE

TINY = SLATEConfig(
    image_size=16,
    vocab_size=40,
    d_model=24,
    num_decoder_blocks=2,
    num_decoder_heads=4,
    num_slots=3,
    slot_size=16,
    mlp_hidden_size=20,
    num_iterations=3,
)
BOUND = 1e-9
STANDARD_ERRORS = 5


def check_against_public(gradient: str, device: torch.device) -> None:
    """Compares fastslots, loaded from the public form's state dict, with that form.

    In float64 and eval mode, from the same initial slots and with as many slot attention steps in all:
    each loss may be off by 1e-9 of itself and, where both unroll, the gradient of each parameter by 1e-9
    of the largest.

    Args:
        gradient: How fastslots differentiates slot attention: "implicit" or "unrolled".
        device: Where to compute.

    Raises:
        IncorrectResultError: If more is off.
    """
    unrolled = gradient == "unrolled"
    steps = TINY.num_iterations + (not unrolled)  # the tracked step
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        public = _moved(PublicSLATE(replace(TINY, num_iterations=steps)).double())
        image = torch.rand(2, 3, TINY.image_size, TINY.image_size, dtype=torch.float64).to(device)
    model = load_public(public, TINY, gradient).to(device)
    public = public.to(device).eval()
    actual, slots = _with_initial_slots(model, image)
    expected = public(image, 0.7, slots=slots)
    for name in ("cross_entropy", "mse"):
        exact = getattr(expected, name)
        _compare(f"{name} ({gradient})", getattr(actual, name), exact, exact.abs())
    if unrolled:
        for loss in (actual.cross_entropy + actual.mse, expected.cross_entropy + expected.mse):
            loss.backward()
        _compare_gradients(model, public)


def check_losses(losses: dict[str, float], case: StepCase) -> None:
    """Compares the first losses of a case's providers, which share weights and image but not noise.

    Catches what is grossly wrong at the size and precision that is measured: a token's loss spreads by
    less than its mean, so two means over B N tokens differ by a few times ``1 / sqrt(B N)``.

    Args:
        losses: By provider; the first is what the others are compared with.
        case: What they were computed on.

    Raises:
        IncorrectResultError: If one is further off.
    """
    bound = STANDARD_ERRORS / math.sqrt(case.batch_size * case.config.num_tokens)
    usual, reference = next(iter(losses.items()), ("", math.nan))
    for name, loss in losses.items():
        if not abs(loss / reference - 1) <= bound:
            raise IncorrectResultError(
                f"{case.name}: the first loss of {name} is {loss:.6g}, that of {usual} {reference:.6g}; "
                f"at most {bound:.2g} of it is noise. Nothing was measured"
            )


def _with_initial_slots(model: SLATE, image: Tensor) -> tuple[SLATEOutput, Tensor]:
    """The output, and the initial slots that the model drew."""
    drawn: list[Tensor] = []
    hook = model.slot_attn.slot_attention.register_forward_pre_hook(
        lambda _, arguments: drawn.append(arguments[1].detach())
    )
    try:
        output: SLATEOutput = model(image, 0.7)
    finally:
        hook.remove()
    return output, drawn[0]


def _compare_gradients(model: SLATE, public: PublicSLATE) -> None:
    pairs = {
        name: (parameter.grad, public.get_parameter(name).grad)
        for name, parameter in model.named_parameters()
        if name not in NAMES  # the public form was given its initial slots
    }
    largest = max(exact.abs().max() for _, exact in pairs.values() if exact is not None)
    for name, (actual, exact) in pairs.items():
        if actual is None or exact is None:
            raise IncorrectResultError(f"{name} has no gradient. Nothing was measured")
        _compare(f"gradient of {name}", actual, exact, largest)


def _compare(what: str, actual: Tensor, exact: Tensor, scale: Tensor) -> None:
    error, bound = (actual - exact).abs().max(), BOUND * scale
    if not error <= bound:
        raise IncorrectResultError(
            f"fastslots differs from the public form in float64: {what} is off by {error:.3g}; at most "
            f"{bound:.3g} is rounding. Nothing was measured"
        )


def _moved(model: PublicSLATE) -> PublicSLATE:
    """Moves every parameter, so that no zero bias and no unit scale hides an error."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
