"""The autoencoder in 16 bits: finite, and as near to float64 as its plain form in the same dtype."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from fastslots.models.autoencoder import SlotAutoencoder
from fastslots.noise import sample_keys
from fastslots_kernels.testing import compare, largest
from tests.models.autoencoder.plain_autoencoder import drawn_slots, plain_autoencoder
from tests.models.autoencoder.small_autoencoders import PATCHES, initial_slots, small_model
from tests.models.slate.small_models import images

KEYS = sample_keys(range(4), 0)
BACKBONES = pytest.mark.parametrize("settings", [{}, PATCHES], ids=["pixels", "patches"])
SHOWN = ("slots", "masks", "colours", "attn")


def shown(model: SlotAutoencoder, image: Tensor, guess: Tensor) -> dict[str, Tensor]:
    slots, attn = model.encode(image, guess)
    slot_images, masks = model.decode(slots)
    values = {"slots": slots, "masks": masks, "colours": 2 * slot_images - 1, "attn": attn}
    return {name: value.detach() for name, value in values.items()}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("way", ["float16", "bfloat16", "autocast"])
@BACKBONES
def test_in_16_bits_it_is_as_near_float64_as_its_plain_form(
    settings: dict[str, Any], way: str, backend: str
) -> None:
    model = small_model(backend=backend, **settings)
    narrow = torch.float16 if way == "float16" else torch.bfloat16
    context: Any = torch.autocast("cpu", narrow) if way == "autocast" else nullcontext()
    model = model if way == "autocast" else model.to(narrow)
    image = images(4).to(model.dtype)
    guess = drawn_slots(model, KEYS).detach()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    with context:
        actual = shown(model, image, guess)
        out, losses = model(image, KEYS), model.losses(image, KEYS)
        eager = plain_autoencoder(weights, model.config, image, guess)._asdict()
    sum(losses).backward()
    assert all(value.isfinite().all() for value in out)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert {value.dtype for value in (out.loss, out.masks, *losses)} == {torch.float32}
    assert out.recon.dtype == model.dtype
    wide = {name: weight.double() for name, weight in weights.items()}
    oracle = plain_autoencoder(wide, model.config, image.double(), guess.double())
    expected = {name: getattr(oracle, name) for name in SHOWN}
    for row in compare(actual, eager, expected, narrow):
        assert row.ok, row
    # By what the reconstruction is off at most, the loss, a mean square, is off in the same measure.
    found = (actual["masks"].double().unsqueeze(2) * actual["colours"].double()).sum(1)
    off = largest(found - oracle.mixed) + 2 * torch.finfo(narrow).eps * largest(oracle.mixed)
    off += torch.finfo(narrow).eps  # of the target in [-1, 1]
    bound = 2 * float(oracle.loss.sqrt()) * off + off**2
    assert abs(float(out.loss.detach()) - float(oracle.loss)) <= bound


@BACKBONES
def test_under_autocast_slots_and_images_may_have_16_bits(settings: dict[str, Any]) -> None:
    model, slots = small_model(**settings), initial_slots(4).bfloat16()
    image = images(4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        slot_images, masks = model.decode(slots)
        expected = model.decode(slots.float())
        out = model(image, KEYS)
        model.look(image, KEYS)
        model.residual(image, slots)
    # The same numbers in bfloat16, whose products autocast rounds alike.
    scale = largest(expected[0].detach())
    assert (
        largest((slot_images - expected[0]).detach()) <= 4 * torch.finfo(torch.bfloat16).eps * scale
    )
    assert masks.isfinite().all()
    assert out.loss.isfinite()


def test_colours_above_what_float16_holds_when_squared_have_a_finite_loss() -> None:
    model = small_model(**PATCHES).half()
    with torch.no_grad():
        model.decoder.out.bias[:48].fill_(300.0)
    loss = model(images(4).half(), KEYS).loss
    assert 8e4 < loss.item() < 1e5
