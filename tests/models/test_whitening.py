"""Colours: to [-1, 1], or white ones around the mean image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastslots.models.autoencoder import SlotAutoencoder
from fastslots.models.whitening import Whitening
from tests.models.autoencoder.small_autoencoders import (
    PATCHES,
    coloured_images,
    small_model,
    whitened_model,
)


def fitted(images: Tensor, dtype: torch.dtype = torch.float64) -> Whitening:
    whitening = Whitening(tuple(images.shape[1:])).to(dtype)
    whitening.fit(list(images))
    return whitening


def covariance(colours: Tensor) -> Tensor:
    flat = colours.transpose(0, 1).flatten(1)
    return flat @ flat.T / flat.shape[1]


def test_unfitted_it_maps_0_to_minus_1_and_1_to_1() -> None:
    whitening = Whitening((3, 4, 4))
    image = torch.rand(2, 3, 4, 4)
    assert torch.equal(whitening(image), 2 * (image - 0.5))
    assert torch.equal(whitening.invert(whitening(image)), (image - 0.5) + 0.5)
    assert whitening(torch.ones(3, 4, 4)).eq(1).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_fitted_the_colours_around_the_mean_image_are_white(channels: int) -> None:
    images = coloured_images(150)[:, :channels]  # more than are loaded at once
    whitening = fitted(images)
    colours = whitening(images)
    # Rounding of covariances, relative to the spread of the variances that are divided by.
    variances = torch.linalg.eigvalsh(covariance(images - images.mean(0)))
    bound = 1e-12 * float(variances[-1] / variances[0])
    assert bound < 1e-9
    assert (colours.mean(0)).abs().max() <= bound
    assert (covariance(colours) - torch.eye(channels)).abs().max() <= bound
    assert (whitening.invert(colours) - images).abs().max() <= bound
    assert torch.allclose(whitening.matrix, whitening.matrix.T, rtol=0, atol=bound)
    assert (whitening.mean - images.mean(0)).abs().max() <= 1e-14


def test_the_first_images_alone_count() -> None:
    images = coloured_images(30)
    whitening, first = Whitening((3, 16, 16)).double(), fitted(images[:10])
    whitening.fit(list(images), 10)
    assert torch.equal(whitening.matrix, first.matrix)
    whitening.fit(list(images[:10]), 1_000)
    assert torch.equal(whitening.mean, first.mean)


@pytest.mark.parametrize("case", ["gray", "constant", "one-image", "black"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_images_of_few_colours_stay_finite_and_come_back(case: str, dtype: torch.dtype) -> None:
    images = {
        "gray": coloured_images(10)[:, :1].expand(-1, 3, -1, -1),
        "constant": torch.full((10, 3, 16, 16), 0.3).double(),
        "one-image": coloured_images(1),
        "black": torch.zeros(10, 3, 16, 16).double(),
    }[case]
    images = images.float().double()
    whitening = fitted(images, dtype)
    others = torch.cat((images, torch.rand(2, 3, 16, 16).double())).to(dtype)
    colours = whitening(others)
    assert colours.isfinite().all()
    if case == "gray":
        spread = covariance(colours[:10].double()).diagonal().sum()
        # One direction: the others, of standard deviations 100 times as small, bring rounding alone.
        assert spread == pytest.approx(1, rel=2 * 100 * torch.finfo(dtype).eps)
    # A sum of three products that is divided and multiplied by standard deviations 100 apart at most.
    largest = whitening.inverse.abs().max() * colours.abs().max()
    bound = 10 * 100 * torch.finfo(dtype).eps * max(1.0, float(largest))
    assert (whitening.invert(colours) - others).abs().max() <= bound


def test_it_is_saved_and_read_back_to_the_bit(tmp_path: Path) -> None:
    model = whitened_model(torch.float32, **PATCHES, whiten=True)
    assert not torch.equal(model.whitening.mean, small_model(**PATCHES).whitening.mean)
    model.save_pretrained(tmp_path)
    loaded = SlotAutoencoder.from_pretrained(tmp_path)
    assert loaded.config.whiten
    for name in ("mean", "matrix", "inverse"):
        assert torch.equal(getattr(loaded.whitening, name), getattr(model.whitening, name)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_it_stays_float32(dtype: torch.dtype) -> None:
    whitening = fitted(coloured_images(5), torch.float32)
    image = coloured_images(2).to(dtype)
    expected = whitening(image.float())
    with torch.autocast("cpu", torch.bfloat16):
        colours = whitening(image)
        back = whitening.invert(colours)
    assert colours.dtype == back.dtype == torch.float32
    assert torch.equal(colours, expected)
    assert torch.equal(back, whitening.invert(expected))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "images must hold at least one image; got 0"),
        ([torch.zeros(3, 4, 4), torch.zeros(3, 5, 5)], ValueError, r"images\[1\] must have the mo"),
        ([torch.zeros(3, 4, 4, dtype=torch.uint8)], TypeError, r"images\[0\] must be floating po"),
        ([torch.full((3, 4, 4), 255.0)], ValueError, r"images\[0\] must lie in \[0, 1\]; got 255"),
        (
            [*torch.zeros(104, 3, 4, 4), torch.full((3, 4, 4), torch.nan)],
            ValueError,
            r"images\[104\] must hold numbers to be whitened; got NaN",
        ),
    ],
)
def test_images_that_it_cannot_be_fitted_to_are_named(images, error, message: str) -> None:
    whitening = Whitening((3, 4, 4))
    with pytest.raises(error, match=message):
        whitening.fit(images)
    assert torch.equal(whitening.mean, torch.full((3, 4, 4), 0.5))
