"""Draws CLEVR's scenes: which objects stand where, and where the camera, lights and mirror are.

Every number is a hash of (seed, index, what it is for), so a scene does not depend on its batch.

Source:
    Johnson et al. 2017, CLEVR: the ranges, jitters and placement rules of its generator; the camera and
    lights of its base scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from fastslots.data.scenes.shapes import CUBE, Vec

COLORS = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
MATERIALS = ("rubber", "metal")
SIZES = ("large", "small")
_RADII = (0.7, 0.35)
_POSITION_RANGE = 3.0
_MIN_GAP = 0.25  # between two objects
_MIN_MARGIN = 0.4  # between two centres, along the camera's right and along its forward direction
_MIRROR_GAP = 0.25  # between an object and the mirror
_CAMERA = (7.4811, -6.5076, 5.3437)
_CAMERA_JITTER = 0.5
_LIGHTS = ((6.4467, -2.9052, 4.2584), (-4.6711, -4.0136, 3.0112), (-1.1685, 2.6460, 5.8157))
_LIGHT_JITTER = 1.0
TAN_HALF_VIEW = 0.36  # CLEVR's 0.343 up (0.457 across), a little wider
_FRAME = 0.97  # an object's bounding sphere stays inside this part of the frame
_CANDIDATES = 32  # places tried for an object before its scene starts again
_ATTEMPTS = 200
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed integer (splitmix64)


@dataclass(frozen=True)
class SceneParameters:
    """What the ray tracer needs to know of ``B`` scenes with at most ``M`` objects.

    Attributes:
        camera: Position, ``[B, 3]`` float32.
        axes: The camera's right, up and forward unit vectors, ``[B, 3, 3]`` float32.
        lights: Positions of the key, fill and back light, ``[B, 3, 3]`` float32.
        mirror: Foot of the mirror's middle, x and y, and its unit normal, ``[B, 4]`` float32.
        count: Number of objects, ``[B]`` int64; the rest of the ``M`` is padding.
        shape, material, size, color: Class numbers, ``[B, M]`` int64, -1 in the padding.
        position: Centres, ``[B, M, 3]`` float32.
        half_extent: Radius, or half the edge of a cube, ``[B, M]`` float32, 0 in the padding.
        rotation: About the vertical axis in degrees, ``[B, M]`` float32.
        heading: Its cosine and sine, ``[B, M, 2]`` float32.
    """

    camera: Tensor
    axes: Tensor
    lights: Tensor
    mirror: Tensor
    count: Tensor
    shape: Tensor
    material: Tensor
    size: Tensor
    color: Tensor
    position: Tensor
    half_extent: Tensor
    rotation: Tensor
    heading: Tensor

    def to(self, device: torch.device) -> Self:
        """The same scenes on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def __getitem__(self, scenes: slice) -> Self:
        return replace(self, **{f.name: getattr(self, f.name)[scenes] for f in fields(self)})


def hashed_uniform(seed: int, index: Tensor, counter: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) that depend on (seed, index, counter) alone.

    Args:
        seed: Any integer.
        index: int64, broadcast with ``counter``.
        counter: int64.

    Returns:
        float64 with 53 random bits.

    Source:
        Steele et al. 2014, splitmix64.
    """
    key = _mix(torch.tensor(seed % 2**63) * _GOLDEN + 1)
    key = _mix(key + index * _GOLDEN)
    bits = _mix(key + (counter + 1) * _GOLDEN)
    return ((bits >> 11) & (2**53 - 1)).double() * 2.0**-53


def _mix(z: Tensor) -> Tensor:
    """The splitmix64 finaliser; int64 arithmetic wraps, and the masks make its shifts logical."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * -4658895280553007687
    z = (z ^ ((z >> 27) & (2**37 - 1))) * -7723592293110705685
    return z ^ ((z >> 31) & (2**33 - 1))


def sample_scenes(
    indices: Tensor, *, seed: int, min_objects: int, max_objects: int
) -> SceneParameters:
    """Draws the scenes of the given indices, on the CPU.

    Args:
        indices: ``[B]`` int64.
        seed: Any integer.
        min_objects: The number of objects is uniform from this one
        max_objects: to this one, which is also ``M``.

    Raises:
        RuntimeError: If the objects of a scene do not fit; not seen for up to 10 objects.
    """
    M = max_objects

    def uniform(stream: int, *shape: int) -> Tensor:
        counter = torch.arange(math.prod(shape)).view(shape) + (stream << 40)
        return hashed_uniform(seed, indices.view(-1, *[1] * len(shape)), counter)

    def choice(stream: int, number: int) -> Tensor:
        return torch.where(present, (uniform(stream, M) * number).long(), -1)

    count = min_objects + (uniform(0, 1)[:, 0] * (max_objects - min_objects + 1)).long()
    present = torch.arange(M) < count[:, None]
    shape, material, size, color = (choice(1 + i, n) for i, n in enumerate((3, 2, 2, 8)))
    radius = torch.where(size == 1, _RADII[1], _RADII[0]).double() * present
    camera = torch.tensor(_CAMERA).double() + _CAMERA_JITTER * (2 * uniform(5, 3) - 1)
    lights = torch.tensor(_LIGHTS).double() + _LIGHT_JITTER * (2 * uniform(6, 3, 3) - 1)
    axes = _look_at_origin(camera)
    mirror = _place_mirror(axes, uniform(7, 3))
    half_extent = torch.where(shape == CUBE, radius / math.sqrt(2), radius)
    rotation = 360 * uniform(8, M) * present

    placer = _Placer(camera, axes, mirror, radius, half_extent)
    position = torch.cat((placer.place(seed, indices, count), half_extent[..., None]), -1)
    radians = [math.radians(a) for a in rotation.flatten().tolist()]  # libm: no vector variants
    heading = torch.tensor([(math.cos(a), math.sin(a)) for a in radians]).view(-1, M, 2)
    reals = (camera, axes, lights, mirror, position, half_extent, rotation, heading)
    camera, axes, lights, mirror, position, half_extent, rotation, heading = (
        x.float() for x in reals
    )
    return SceneParameters(
        camera, axes, lights, mirror, count, shape, material, size, color, position, half_extent,
        rotation, heading,
    )  # fmt: skip


def pixel_coordinates(p: SceneParameters, image_size: int) -> Tensor:
    """Where the centres appear: x and y in pixels, and depth, ``[B, M, 3]`` float32; 0 in padding."""
    right, up, forward = (Vec.of(a[:, None]) for a in p.axes.unbind(1))
    eye = Vec.of(p.position) - Vec.of(p.camera[:, None])
    depth = eye.dot(forward)
    half = 0.5 * image_size
    x = half * (1 + eye.dot(right) / (depth * TAN_HALF_VIEW))
    y = half * (1 - eye.dot(up) / (depth * TAN_HALF_VIEW))
    pixels = torch.stack((x, y, depth), -1)
    return torch.where(p.shape[..., None] < 0, 0, pixels)


def _look_at_origin(camera: Tensor) -> Tensor:
    """Right, up and forward vectors, ``[B, 3, 3]``, of an upright camera that sees the origin."""
    forward = (Vec.of(camera) * -1).unit()
    zero = torch.zeros_like(forward.x)
    right = Vec(forward.y, -forward.x, zero).unit()
    up = Vec(right.y * forward.z, -right.x * forward.z, right.x * forward.y - right.y * forward.x)
    return torch.stack([torch.stack((v.x, v.y, v.z), -1) for v in (right, up, forward)], 1)


def _place_mirror(axes: Tensor, uniform: Tensor) -> Tensor:
    """An upright mirror behind the objects, turned and shifted a little: foot and normal, [B, 4]."""
    behind = Vec.of(axes[:, 2])
    length = (behind.x * behind.x + behind.y * behind.y).sqrt()
    bx, by = behind.x / length, behind.y / length
    turn = 0.6 * uniform[:, 0] - 0.3  # tangent of up to 17 degrees
    nx, ny = -bx + turn * by, -by - turn * bx
    length = (nx * nx + ny * ny).sqrt()
    nx, ny = nx / length, ny / length
    distance = 3.4 + 0.5 * uniform[:, 1]
    shift = 2 * uniform[:, 2] - 1
    return torch.stack((-nx * distance - ny * shift, -ny * distance + nx * shift, nx, ny), -1)


@dataclass(frozen=True)
class _Placer:
    """Places objects one after another, in float64, for a batch of scenes."""

    camera: Tensor
    axes: Tensor
    mirror: Tensor
    radius: Tensor
    half_extent: Tensor

    def place(self, seed: int, indices: Tensor, count: Tensor) -> Tensor:
        """Positions on the ground, ``[B, M, 2]``; an attempt redraws the scenes that did not fit."""
        position = torch.zeros(*self.radius.shape, 2, dtype=torch.float64)
        open_scenes = torch.arange(len(indices))
        for attempt in range(_ATTEMPTS):
            placer = _Placer(*(getattr(self, f.name)[open_scenes] for f in fields(self)))
            margin = _MIN_MARGIN * min(1.0, 4 / (attempt + 1))
            drawn, fits = placer._attempt(
                seed, indices[open_scenes], count[open_scenes], attempt, margin
            )
            position[open_scenes[fits]] = drawn[fits]
            open_scenes = open_scenes[~fits]
            if not len(open_scenes):
                return position
        index = indices[open_scenes[0]].item()
        raise RuntimeError(f"scene {index} of seed {seed}: {_ATTEMPTS} attempts to place objects")

    def _attempt(
        self, seed: int, indices: Tensor, count: Tensor, attempt: int, margin: float
    ) -> tuple[Tensor, Tensor]:
        B, M = self.radius.shape
        position = torch.zeros(B, M, 2, dtype=torch.float64)
        screen = torch.zeros(B, M, 3, dtype=torch.float64)
        fits = torch.ones(B, dtype=torch.bool)
        rows = torch.arange(B)
        for m in range(M):
            base = (9 << 40) + (attempt * M + m) * 2 * _CANDIDATES
            counter = base + torch.arange(2 * _CANDIDATES)
            uniform = hashed_uniform(seed, indices[:, None], counter)
            xy = (_POSITION_RANGE * (2 * uniform - 1)).view(B, _CANDIDATES, 2)
            view = self._project(xy, m)
            free = self._in_view(view) & self._before_mirror(xy, m)
            for other in range(m):
                free &= self._apart(xy, position[:, other], m, other, margin)
                free &= _visible(view, screen[:, other, None])
            first = free.int().argmax(1)
            position[:, m], screen[:, m] = xy[rows, first], view[rows, first]
            fits &= free.any(1) | (m >= count)
        present = torch.arange(M) < count[:, None]
        return torch.where(present[..., None], position, 0), fits

    def _project(self, xy: Tensor, m: int) -> Tensor:
        """Image x, y in [-1, 1] and radius of each candidate's bounding sphere, ``[B, C, 3]``."""
        right, up, forward = (Vec.of(self.axes[:, i, None]) for i in range(3))
        z = self.half_extent[:, m, None].expand(xy.shape[:2])
        eye = Vec(xy[..., 0], xy[..., 1], z) - Vec.of(self.camera[:, None])
        scale = 1 / (eye.dot(forward) * TAN_HALF_VIEW)
        radius = self.radius[:, m, None] * scale
        return torch.stack((eye.dot(right) * scale, eye.dot(up) * scale, radius), -1)

    @staticmethod
    def _in_view(view: Tensor) -> Tensor:
        x, y, radius = view.unbind(-1)
        return torch.maximum(x.abs(), y.abs()) + radius < _FRAME

    def _before_mirror(self, xy: Tensor, m: int) -> Tensor:
        foot_x, foot_y, nx, ny = self.mirror[:, None].unbind(-1)
        distance = (xy[..., 0] - foot_x) * nx + (xy[..., 1] - foot_y) * ny
        return distance > self.radius[:, m, None] + _MIRROR_GAP

    def _apart(self, xy: Tensor, placed: Tensor, m: int, other: int, margin: float) -> Tensor:
        """CLEVR's two rules; ``placed`` is ``[B, 2]``."""
        dx, dy = (xy - placed[:, None]).unbind(-1)
        gap = (dx * dx + dy * dy).sqrt() - (self.radius[:, m] + self.radius[:, other])[:, None]
        right_x, right_y = self.axes[:, 0, None, :2].unbind(-1)
        across = (dx * right_x + dy * right_y).abs()
        along = (dx * right_y - dy * right_x).abs()
        return (gap > _MIN_GAP) & (torch.minimum(across, along) > margin)


def _visible(a: Tensor, b: Tensor) -> Tensor:
    """Whether the smaller of two discs on the screen sticks out of the larger by a third at least."""
    dx, dy = a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]
    smaller, larger = torch.minimum(a[..., 2], b[..., 2]), torch.maximum(a[..., 2], b[..., 2])
    return (dx * dx + dy * dy).sqrt() + smaller - larger > 0.7 * smaller
