"""What stands where."""

import math

import pytest
import torch

from fastslots.data.scenes.sampling import (
    TAN_HALF_VIEW,
)
from fastslots.data.scenes.shapes import (
    CUBE,
)
from tests.data.scenes.placed import parameters


@pytest.mark.parametrize(("low", "high"), [(3, 6), (1, 1), (10, 10)])
def test_object_counts_stay_in_their_range_and_reach_its_ends(low, high):
    p = parameters(48, low, high)
    assert p.count.min() == low
    assert p.count.max() == high
    assert torch.equal((p.shape >= 0).sum(1), p.count)


def test_every_class_appears_about_equally_often():
    p = parameters(400)
    for tensor, number in ((p.shape, 3), (p.size, 2), (p.material, 2), (p.color, 8)):
        share = torch.bincount(tensor[tensor >= 0], minlength=number) / p.count.sum()
        assert len(share) == number
        assert (share * number - 1).abs().max() < 0.25


@pytest.mark.parametrize(("low", "high"), [(3, 6), (10, 10)])
def test_objects_stand_apart_on_the_floor_inside_the_frame_and_before_the_mirror(low, high):
    p = parameters(48, low, high)
    x, y, z = p.position.double().unbind(-1)
    radius = torch.where(p.shape == CUBE, p.half_extent * math.sqrt(2), p.half_extent).double()
    present = p.shape >= 0
    assert torch.equal(z.float(), p.half_extent)
    assert x.abs().max() <= 3
    assert y.abs().max() <= 3
    gap = ((x[:, :, None] - x[:, None]) ** 2 + (y[:, :, None] - y[:, None]) ** 2).sqrt()
    gap = gap - radius[:, :, None] - radius[:, None]
    pairs = present[:, :, None] & present[:, None] & ~torch.eye(high, dtype=torch.bool)
    assert gap[pairs].numel() > 0
    assert gap[pairs].min() > 0.25 - 1e-5
    foot_x, foot_y, nx, ny = p.mirror.double()[:, None].unbind(-1)
    clearance = (x - foot_x) * nx + (y - foot_y) * ny - radius
    assert clearance[present].min() > 0.2
    eye = p.position - p.camera[:, None]
    right, up, forward = ((eye * a[:, None]).sum(-1) for a in p.axes.unbind(1))
    assert (right / forward)[present].abs().max() < TAN_HALF_VIEW
    assert (up / forward)[present].abs().max() < TAN_HALF_VIEW


def test_usual_scenes_keep_clevrs_margin_along_the_cameras_axes():
    p = parameters(64)
    right = (p.position * p.axes[:, :1]).sum(-1)
    flat_forward = torch.nn.functional.normalize(p.axes[:, 2, :2], dim=-1)
    forward = (p.position[..., :2] * flat_forward[:, None]).sum(-1)
    present = p.shape >= 0
    pairs = present[:, :, None] & present[:, None] & ~torch.eye(6, dtype=torch.bool)
    for along in (right, forward):
        assert (along[:, :, None] - along[:, None]).abs()[pairs].min() > 0.4 - 1e-5
