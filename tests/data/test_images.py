"""Checks of images."""

import pytest
import torch

from fastslots.data.images import check_image

SHAPE = (3, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_takes_floating_point_in_range_up_to_rounding(dtype):
    image = torch.linspace(-1e-4, 1 + 1e-4, 48).reshape(SHAPE)
    check_image("images", 0, image.to(dtype), SHAPE)


@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_refuses_a_single_value_beyond_the_range(value):
    image = torch.full(SHAPE, 0.5)
    image[1, 2, 3] = value
    with pytest.raises(
        ValueError, match=r"^images\[7\] must lie in \[0, 1\]; got .*: divide values"
    ):
        check_image("images", 7, image, SHAPE)


def test_waits_for_no_device_but_when_told_to():
    image = torch.empty(SHAPE, device="meta")  # whose values cannot be looked at
    check_image("images", 0, image, SHAPE, wait=False)
    with pytest.raises(RuntimeError):
        check_image("images", 0, image, SHAPE)
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\); got \(3, 4, 4\)"):
        check_image("images", 0, image, (3, 8, 8), wait=False)
