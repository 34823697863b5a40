"""CLEVR's sphere, cube and cylinder in their own frame: unit size, centred at 0, standing on z = -1.

Every function uses only ``+ - * /``, square roots, comparisons and selections: IEEE 754 rounds those
one way, so an element's bits do not depend on its neighbours, the batch or the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES = ("cube", "sphere", "cylinder")
CUBE, SPHERE, CYLINDER = range(3)
BOUNDING_RADIUS = (3**0.5, 1.0, 2**0.5)
_BEVEL = 0.1  # width of the rounded edges of CLEVR's SmoothCube_v2 and SmoothCylinder
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Vec:
    """A batch of 3-vectors, one tensor a component: every operation runs on contiguous memory."""

    x: Tensor
    y: Tensor
    z: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.x, self.y, self.z))

    def __add__(self, other: Vec) -> Vec:
        return Vec(self.x + other.x, self.y + other.y, self.z + other.z)

    def __sub__(self, other: Vec) -> Vec:
        return Vec(self.x - other.x, self.y - other.y, self.z - other.z)

    def __mul__(self, factor: Vec | Tensor | float) -> Vec:
        if isinstance(factor, Vec):
            return Vec(self.x * factor.x, self.y * factor.y, self.z * factor.z)
        return Vec(self.x * factor, self.y * factor, self.z * factor)

    def dot(self, other: Vec) -> Tensor:
        """The inner product."""
        return self.x * other.x + self.y * other.y + self.z * other.z

    def unit(self) -> Vec:
        """The vector of length 1 in the same direction."""
        return self * (1 / self.dot(self).sqrt())

    def reflect(self, normal: Vec) -> Vec:
        """This direction, mirrored at a surface with the given unit normal."""
        return self - normal * (2 * self.dot(normal))

    def map(self, function: Callable[[Tensor], Tensor]) -> Vec:
        """Applies a function to each component."""
        return Vec(function(self.x), function(self.y), function(self.z))

    def rows(self, index: Tensor) -> Vec:
        """The rows of each component that are numbered in ``index``."""
        return self.map(lambda t: t.index_select(0, index))

    @staticmethod
    def of(tensor: Tensor) -> Vec:
        """Splits the last dimension of size 3."""
        x, y, z = tensor.unbind(-1)
        return Vec(x.contiguous(), y.contiguous(), z.contiguous())


def intersect(shape: int, origin: Vec, direction: Vec) -> Tensor:
    """Distance, in lengths of ``direction``, to the first hit from outside; inf where there is none."""
    if shape == CUBE:
        near, far = _slabs(origin.x, direction.x)
        for o, d in ((origin.y, direction.y), (origin.z, direction.z)):
            near, far = _overlap((near, far), _slabs(o, d))
        hit = near < far
    else:
        near, far, hit = _quadric(shape, origin, direction)
        if shape == CYLINDER:
            near, far = _overlap((near, far), _slabs(origin.z, direction.z))
            hit &= near < far
    return torch.where(hit & (near > 1e-4), near, torch.inf)


def _slabs(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Where the ray enters and leaves the space between the planes at -1 and 1."""
    inverse = 1 / direction
    middle = -origin * inverse
    half = inverse.abs()
    return middle - half, middle + half


def _overlap(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])


def _quadric(shape: int, origin: Vec, direction: Vec) -> tuple[Tensor, Tensor, Tensor]:
    """Both roots of the unit sphere (or of the unit circle in the plane, for a cylinder)."""
    a = direction.x * direction.x + direction.y * direction.y
    b = origin.x * direction.x + origin.y * direction.y
    c = origin.x * origin.x + origin.y * origin.y - 1
    if shape == SPHERE:
        a = a + direction.z * direction.z
        b = b + origin.z * direction.z
        c = c + origin.z * origin.z
    discriminant = b * b - a * c
    root = discriminant.clamp_min(0).sqrt()
    inverse = 1 / a
    return (-b - root) * inverse, (root - b) * inverse, discriminant > 0


def normal(shape: Tensor, point: Vec) -> Vec:
    """Outward unit normal at a surface point, rounded near the edges of cubes and cylinders."""
    radius = (point.x * point.x + point.y * point.y).sqrt()
    side = _ramp(radius) / radius.clamp_min(_TINY)
    cube, cylinder = shape == CUBE, shape == CYLINDER

    def pick(on_cube: Tensor, on_cylinder: Tensor, on_sphere: Tensor) -> Tensor:
        return torch.where(cube, on_cube, torch.where(cylinder, on_cylinder, on_sphere))

    ramps = point.map(_ramp)
    x = pick(ramps.x, point.x * side, point.x)
    y = pick(ramps.y, point.y * side, point.y)
    z = pick(ramps.z, ramps.z, point.z)
    return Vec(x, y, z).unit()


def _ramp(value: Tensor) -> Tensor:
    """0 on the flat part of a face, rising to ±1 at its edge."""
    return value.sign() * ((value.abs() - (1 - _BEVEL)) / _BEVEL).clamp_min(0)


def silhouette_distance(shape: int, point: Vec, direction: Vec) -> Tensor:
    """Signed distance from a line to the outline of the shape seen along it; negative if they meet.

    Exact for the sphere and for the cube outside its corners' neighbourhoods (an outline of a cube is
    the hexagon bounded by the three pairs of planes that hold the line's direction and an edge's);
    first order for the rounded ends of the cylinder's outline.

    Args:
        shape: One of the constants.
        point: A point of the line.
        direction: The line's unit direction.
    """
    if shape == CUBE:
        x, y, z = direction.x.abs(), direction.y.abs(), direction.z.abs()
        return torch.maximum(
            torch.maximum(
                _pair_distance(point.y, point.z, direction.y, direction.z, y + z),
                _pair_distance(point.z, point.x, direction.z, direction.x, z + x),
            ),
            _pair_distance(point.x, point.y, direction.x, direction.y, x + y),
        )
    if shape == SPHERE:
        along = point.dot(direction)
        return (point.dot(point) - along * along).clamp_min(0).sqrt() - 1
    return _capsule_distance(point, direction)


def _pair_distance(p: Tensor, q: Tensor, dp: Tensor, dq: Tensor, support: Tensor) -> Tensor:
    length = (dp * dp + dq * dq).clamp_min(_TINY).sqrt()
    return ((p * dq - q * dp).abs() - support) / length


def _capsule_distance(point: Vec, direction: Vec) -> Tensor:
    """Distance to the cylinder's outline: an ellipse, drawn out along the projected axis."""
    flat = (direction.x * direction.x + direction.y * direction.y).clamp_min(_TINY).sqrt()
    across = (point.x * direction.y - point.y * direction.x) / flat
    toward = (point.x * direction.x + point.y * direction.y) / flat
    upward = point.z * flat - toward * direction.z
    beyond = (upward.abs() - flat).clamp_min(0)
    squash = direction.z.abs().clamp_min(0.05)
    ellipse = beyond / squash
    level = (across * across + ellipse * ellipse).clamp_min(_TINY).sqrt()
    slope = (across * across + ellipse * ellipse / (squash * squash)).clamp_min(_TINY).sqrt()
    return level * (level - 1) / slope
