"""The autoencoder equals its plain form in float64: what it gives, and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastslots.models.autoencoder import SlotAutoencoder
from fastslots.noise import sample_keys
from fastslots_kernels.testing import FLOAT64_BOUND, compare, largest
from tests.models.autoencoder.plain_autoencoder import Plain, drawn_slots, plain_autoencoder
from tests.models.autoencoder.small_autoencoders import PATCHES, small_model
from tests.models.slate.small_models import images

KEYS = sample_keys(range(2), 0)
CASES = [
    pytest.param({}, id="pixels-16"),
    pytest.param({"image_size": 32}, id="pixels-32"),
    pytest.param({"image_channels": 1}, id="pixels-gray"),
    pytest.param(PATCHES, id="patches"),
    pytest.param(PATCHES | {"patch_size": 2, "image_size": 12}, id="patches-12"),
    pytest.param(PATCHES | {"patch_size": 8, "image_channels": 1}, id="patches-gray"),
]


def make(backend: str, **settings: Any) -> tuple[SlotAutoencoder, Tensor]:
    model = small_model(backend=backend, **settings).double()
    image = images(2, model.config.image_size, dtype=torch.float64)
    return model, image[:, : model.config.image_channels]


def weighted(loss: Tensor, entropy: Tensor) -> Tensor:
    return loss + 0.3 * entropy


def gradients(model: SlotAutoencoder, loss: Tensor) -> dict[str, Tensor]:
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(learning.values()))
    return dict(zip(learning, found, strict=True))


def assert_equal(
    actual: dict[str, Tensor], expected: dict[str, Tensor], scale: float | None = None
) -> None:
    actual, expected = ({n: x.detach() for n, x in y.items()} for y in (actual, expected))
    for row in compare(actual, actual, expected, torch.float64, scale=scale):
        assert row.ok, row


def assert_gradients_equal(model: SlotAutoencoder, image: Tensor, plain: Plain) -> None:
    expected = gradients(model, weighted(plain.loss, plain.entropy))
    actual = gradients(model, weighted(*model.losses(image, KEYS)))
    assert_equal(actual, expected, largest(*expected.values()))
    assert (
        largest(expected["encoder.convs.0.weight"]) > 1e3 * FLOAT64_BOUND
    )  # the bound says something


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("settings", CASES)
def test_everything_and_all_gradients_equal_the_plain_form(
    settings: dict[str, Any], backend: str
) -> None:
    model, image = make(backend, **settings)
    guess = drawn_slots(model, KEYS)
    plain = plain_autoencoder(dict(model.named_parameters()), model.config, image, guess)
    slots, attn = model.encode(image, guess)
    slot_images, masks = model.decode(slots)
    found, out = model.losses(image, KEYS), model(image, KEYS)
    actual = {
        "slots": slots,
        "attn": attn,
        "slot_images": slot_images,
        "masks": masks,
        "loss": found[0],
        "entropy": found[1],
        "recon": out.recon,
        **{f"out.{name}": getattr(out, name) for name in ("loss", "masks", "attn", "slots")},
    }
    mixed = (plain.mixed + 1) / 2
    expected = {
        **plain._asdict(),
        "slot_images": (plain.colours + 1) / 2,
        "recon": mixed.clamp(0, 1),
        **{f"out.{name}": getattr(plain, name) for name in ("loss", "masks", "attn", "slots")},
    }
    assert_equal(actual, {name: expected[name] for name in actual})
    assert_gradients_equal(model, image, plain)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("backbone", ["pixels", "patches"])
def test_the_implicit_gradient_is_that_of_one_step_from_the_detached_fixed_point(
    backbone: str, backend: str
) -> None:
    model, image = make(backend, backbone=backbone, gradient="neumann", num_iterations=5)
    guess = drawn_slots(model, KEYS)
    plain = plain_autoencoder(
        dict(model.named_parameters()), model.config, image, guess, untracked=5
    )
    assert_equal({"slots": model(image, KEYS).slots}, {"slots": plain.slots})
    assert_gradients_equal(model, image, plain)


@pytest.mark.parametrize("settings", [{}, PATCHES], ids=["pixels", "patches"])
def test_the_unrolled_gradient_is_the_slope_of_the_losses(settings: dict[str, Any]) -> None:
    model, image = make("torch", **settings)
    leaves = [image.requires_grad_(), *model.parameters()]
    generator = torch.Generator().manual_seed(5)
    direction = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in leaves]
    loss = weighted(*model.losses(image, KEYS))
    found = torch.autograd.grad(loss, leaves)
    slope = sum(float((g * v).sum()) for g, v in zip(found, direction, strict=True))

    @torch.no_grad()
    def at(distance: float) -> float:
        for x, v in zip(leaves, direction, strict=True):
            x.add_(distance * v)
        value = float(weighted(*model.losses(image, KEYS)))
        for x, v in zip(leaves, direction, strict=True):
            x.sub_(distance * v)
        return value

    # Of central differences the error falls with the square of the step: that of the smaller step is a third
    # of what they differ by, beside the rounding of two losses over their distance.
    step = 1e-6
    near, far = ((at(h) - at(-h)) / (2 * h) for h in (step, 2 * step))
    rounding = 100 * torch.finfo(torch.float64).eps * loss.item() / step
    assert abs(near - slope) <= abs(far - near) + rounding
    assert rounding < 1e-6 * abs(slope)
