"""Rays and outlines of the shapes."""

import math

import pytest
import torch

from fastslots.data.scenes.shapes import (
    CUBE,
    CYLINDER,
    SHAPES,
    SPHERE,
    Vec,
    intersect,
    normal,
    silhouette_distance,
)


def columns(*rows):
    return Vec.of(torch.tensor(rows, dtype=torch.float32))


@pytest.mark.parametrize("shape", range(3), ids=SHAPES)
def test_rays_hit_a_shape_where_its_surface_is(shape):
    generator = torch.Generator().manual_seed(0)
    origin = 4 * torch.nn.functional.normalize(torch.randn(500, 3, generator=generator), dim=1)
    target = torch.randn(500, 3, generator=generator) * 0.8
    direction = torch.nn.functional.normalize(target - origin, dim=1)
    distance = intersect(shape, Vec.of(origin), Vec.of(direction))
    steps = torch.linspace(0, 8, 4001)
    points = origin[:, None] + steps[:, None] * direction[:, None]
    inside = solid(shape, points)
    walked = torch.where(inside.any(1), steps[inside.int().argmax(1)], torch.inf)
    certain = solid(shape, points, 0.02).any(1) | ~solid(shape, points, -0.02).any(1)
    assert certain.sum() > 400
    assert torch.equal(distance.isfinite()[certain], walked.isfinite()[certain])
    both = certain & walked.isfinite()
    assert both.sum() > 150
    assert (distance - walked)[both].abs().max() < 0.05


def solid(shape, points, margin=0.0):
    x, y, z = points.unbind(-1)
    within = 1 - margin
    if shape == CUBE:
        return points.abs().amax(-1) < within
    if shape == SPHERE:
        return points.norm(dim=-1) < within
    return (x * x + y * y < within**2) & (z.abs() < within)


@pytest.mark.parametrize("shape", range(3), ids=SHAPES)
def test_a_line_meets_a_shape_exactly_where_its_outline_distance_is_negative(shape):
    generator = torch.Generator().manual_seed(1)
    origin = 4 * torch.nn.functional.normalize(torch.randn(800, 3, generator=generator), dim=1)
    target = torch.randn(800, 3, generator=generator)
    direction = torch.nn.functional.normalize(target - origin, dim=1)
    gap = silhouette_distance(shape, Vec.of(origin), Vec.of(direction))
    hit = intersect(shape, Vec.of(origin), Vec.of(direction)).isfinite()
    clear = gap.abs() > 0.02
    assert torch.equal(hit[clear], gap[clear] < 0)
    assert clear.sum() > 700


def test_normals_point_outward_and_round_the_edges():
    points = columns((0, 0, 1), (1, 0, 0), (0.6, 0.8, 0), (0, 0.3, -1))
    shapes = torch.tensor([CUBE, CUBE, CYLINDER, CYLINDER])
    n = torch.stack([*normal(shapes, points)], -1)
    expected = torch.tensor([(0, 0, 1), (1, 0, 0), (0.6, 0.8, 0), (0, 0, -1.0)])
    torch.testing.assert_close(n, expected)
    edge = torch.stack([*normal(torch.tensor([CUBE]), columns((1, 1, 0)))], -1)
    torch.testing.assert_close(edge, torch.tensor([(1.0, 1.0, 0.0)]) / math.sqrt(2))
