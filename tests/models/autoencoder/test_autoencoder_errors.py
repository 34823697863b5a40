"""What the autoencoder and its settings refuse, with the rule and the value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastslots.models.autoencoder import SlotAutoencoder, SlotAutoencoderConfig
from fastslots.models.registry import trainable_of
from fastslots.noise import sample_keys
from tests.models.autoencoder.small_autoencoders import PATCHES, initial_slots, small_model
from tests.models.slate.small_models import images
from tests.training.colours import ColourConfig, ColourModel


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "vit"}, r"backbone must be one of \('pixels', 'patches'\); got 'vit'"),
        ({"backbone": "patches", "patch_size": 3}, "^patch_size must be even; got 3$"),
        ({"backbone": "patches", "patch_size": 0}, "patch_size must be at least 1; got 0"),
        (
            {"backbone": "patches", "patch_size": 6},
            "image_size must be a multiple of patch_size 6; got 128",
        ),
        *(
            (
                {"image_size": size},
                "image_size must be 8 doubled at least once, 16, 32, 64, 128 and so on, "
                f"with backbone='pixels'; got {size}",
            )
            for size in (4, 8, 24, 100)
        ),
        ({"width": 0}, "width must be at least 1; got 0"),
        ({"whiten": 1}, "whiten must be True or False; got 1"),
        ({"num_slot_heads": 3}, "slot_size must be a multiple of num_slot_heads 3; got 64"),
        (
            {"num_iterations": 0, "gradient": "unrolled"},
            "num_iterations must be at least 1 with gradient='unrolled'; got 0",
        ),
        ({"gradient": "adjoint"}, "gradient must be one of .*; got 'adjoint'"),
        ({"slot_init": "zeros"}, "slot_init must be one of .*; got 'zeros'"),
        ({"backend": "cuda"}, "backend must be one of .*; got 'cuda'"),
        ({"epsilon": -1.0}, "epsilon must be at least 0 and finite; got -1.0"),
        ({"image_size": "64"}, "image_size must be an int; got '64'"),
    ],
)
def test_a_setting_that_breaks_its_rule_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SlotAutoencoderConfig(**settings)


def test_the_size_of_patches_is_of_no_account_without_them() -> None:
    assert SlotAutoencoderConfig(patch_size=7).grid_size == 128


def test_what_is_no_config_is_named() -> None:
    with pytest.raises(TypeError, match="config must be a SlotAutoencoderConfig; got dict"):
        SlotAutoencoder({"num_slots": 3})


METHODS = {
    "call": lambda model, image, **keys: model(image, **keys),
    "losses": lambda model, image, **keys: model.losses(image, **keys),
    "encode": lambda model, image, **keys: model.encode(image, **keys),
    "reconstruct": lambda model, image, **keys: model.reconstruct(image, **keys),
    "segment": lambda model, image, **keys: model.segment(image, **keys),
    "look": lambda model, image, **keys: model.look(image, **keys),
    "residual": lambda model, image: model.residual(image, initial_slots().float()),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (
            torch.rand(2, 3, 20, 20),
            ValueError,
            r"image must have shape \(B, 3, 16, 16\); got \(2, 3, 20, 20\)",
        ),
        (
            torch.rand(3, 16, 16),
            ValueError,
            r"image must have shape \(B, 3, 16, 16\); got \(3, 16, 16\)",
        ),
        (torch.rand(2, 1, 16, 16), ValueError, r"\(B, 3, 16, 16\); got \(2, 1, 16, 16\)"),
        (
            images(2).double(),
            TypeError,
            r"image must be torch.float32 like the parameters; got torch.float64",
        ),
        (images(2).mul(255).byte(), TypeError, "image must be torch.float32 .*; got torch.uint8"),
        (
            images(2).to("meta"),
            ValueError,
            "image must be on the device of the parameters, cpu; got meta",
        ),
        ([[1.0]], TypeError, "image must be a tensor; got list"),
    ],
)
def test_an_image_that_is_not_the_models_is_named(method, image, error, message: str) -> None:
    with pytest.raises(error, match=message):
        method(small_model(**PATCHES), image)


@pytest.mark.parametrize("method", list(METHODS.values())[:-1], ids=list(METHODS)[:-1])
@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        (sample_keys(range(3), 0), ValueError, r"keys must have shape \(2, 2\); got \(3, 2\)"),
        (sample_keys(range(2), 0).long(), TypeError, "keys must be torch.int32; got torch.int64"),
        (sample_keys(range(2), 0).to("meta"), ValueError, "keys must be on the device .*; got met"),
        (7, TypeError, "keys must be a tensor; got int"),
    ],
)
def test_keys_that_are_not_one_per_image_are_named(method, keys, error, message: str) -> None:
    with pytest.raises(error, match=message):
        method(small_model(**PATCHES), images(2), keys=keys)


SLOT_METHODS = {
    "encode": lambda model, slots: model.encode(images(2), slots),
    "reconstruct": lambda model, slots: model.reconstruct(images(2), slots),
    "segment": lambda model, slots: model.segment(images(2), slots),
    "residual": lambda model, slots: model.residual(images(2), slots),
    "decode": lambda model, slots: model.decode(slots),
}


@pytest.mark.parametrize("method", SLOT_METHODS)
@pytest.mark.parametrize(
    ("slots", "error", "message"),
    [
        (
            torch.zeros(2, 3, 5),
            ValueError,
            r"shape \((2|B), K, 6\) with K at least 1; got \(2, 3, 5\)",
        ),
        (torch.zeros(2, 0, 6), ValueError, r"K at least 1; got \(2, 0, 6\)"),
        (torch.zeros(2, 6), ValueError, r"K at least 1; got \(2, 6\)"),
        (torch.zeros(3, 3, 6), ValueError, r"shape \(2, K, 6\) .*; got \(3, 3, 6\)"),
        (torch.zeros(2, 3, 6).double(), TypeError, "slots must be torch.float32 .*; got torch.flo"),
        (torch.zeros(2, 3, 6).to("meta"), ValueError, "slots must be on the device .*; got meta"),
        ("slots", TypeError, "slots must be a tensor; got str"),
    ],
)
def test_slots_that_are_not_the_models_are_named(method, slots, error, message: str) -> None:
    if method == "decode" and "shape \\(2, K" in message:
        return  # which has no images to count
    with pytest.raises(error, match=message):
        SLOT_METHODS[method](small_model(**PATCHES), slots)


def test_a_model_that_nothing_trains_is_named() -> None:
    model = ColourModel(ColourConfig())
    with pytest.raises(TypeError, match="a SLATE or SlotAutoencoder; got ColourModel"):
        trainable_of(model)
