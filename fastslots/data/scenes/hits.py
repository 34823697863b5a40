"""Finds what rays of CLEVR-like scenes meet first.

Rays come in tiles, ``[T, W]``: the rays of 4 x 4 pixels, or single rays where they spread. The bounds of
a tile are tested against each object's bounding sphere, and only the pairs of tile and object that may
meet are intersected, so the work grows with what is on the screen. All reductions are by min and max:
together with the arithmetic of shapes.py, a ray's result is the same bits in any batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastslots.data.scenes.sampling import COLORS, SceneParameters
from fastslots.data.scenes.shapes import BOUNDING_RADIUS, Vec, intersect

BACKGROUND, MIRROR = -1, -2  # items that are not an object's number
FAR = 1e3
MIRROR_HALF_WIDTH, MIRROR_HEIGHT = 3.6, 2.9

# CLEVR's floor rises into a wall along this direction; a quarter of a circle is close to its profile.
SWEEP = (-0.90321, 0.42920)
SWEEP_START, SWEEP_RADIUS = 8.5, 9.5

_SUN_DISTANCE = 100.0
_SUN_DIRECTION = (0.4145, -0.1946, 0.8890)


@dataclass(frozen=True)
class Light:
    """An area lamp: colour, irradiance at distance 1 on its axis, radius of the disc of its area."""

    color: tuple[float, float, float]
    power: float
    radius: float


LIGHTS = (  # key, fill, back, sun; a lamp of P watts has the axial intensity P / 4 in Blender's Cycles
    Light((1.0, 0.9323, 0.8167), 100 / 4, 0.5 / 3.1416**0.5),
    Light((0.7617, 0.8177, 1.0), 30 / 4, 0.5 / 3.1416**0.5),
    Light((1.0, 1.0, 1.0), 50 / 4, 1.0 / 3.1416**0.5),
    Light((1.0, 1.0, 1.0), 0.45 * _SUN_DISTANCE**2, 0.06 * _SUN_DISTANCE),
)


@dataclass(frozen=True)
class Rays:
    """Tiles of rays.

    Attributes:
        scene: Number of each tile's scene, ``[T]`` int64.
        origin: ``[T, W]``, or ``[T, 1]`` if shared.
        direction: ``[T, W]``, unit length.
        active: The rays whose results are used, ``[T, W]`` bool; None for all.
    """

    scene: Tensor
    origin: Vec
    direction: Vec
    active: Tensor | None = None


@dataclass(frozen=True)
class Hits:
    """What each active ray meets first: distance, and an object's number, BACKGROUND or MIRROR."""

    distance: Tensor
    item: Tensor


@dataclass(frozen=True)
class Scenes:
    """``B`` scenes of up to ``M`` objects in the layout of the tracer; flat: ``[B * M]``."""

    camera: Vec  # [B]
    axes: tuple[Vec, Vec, Vec]  # [B]: right, up, forward
    lights: tuple[Vec, ...]  # [B]
    mirror: Tensor | None  # [B, 4]
    center: Vec  # [M, B]
    bound: Tensor  # [M, B], radius of the bounding sphere; -inf in the padding
    position: Vec  # the rest is flat
    extent: Tensor
    cosine: Tensor
    sine: Tensor
    shape: Tensor
    metal: Tensor
    color: Vec

    @staticmethod
    def of(p: SceneParameters, *, mirror: bool) -> Scenes:
        """Lays the parameters out; the sun is a far lamp."""
        device = p.camera.device
        table = torch.tensor(list(COLORS.values()), device=device) / 255
        bound = torch.tensor(BOUNDING_RADIUS, device=device)[p.shape] * p.half_extent
        sun = torch.tensor(_SUN_DIRECTION, device=device) * _SUN_DISTANCE
        right, up, forward = (Vec.of(a) for a in p.axes.unbind(1))
        return Scenes(
            camera=Vec.of(p.camera),
            axes=(right, up, forward),
            lights=tuple(Vec.of(v) for v in (*p.lights.unbind(1), sun.expand_as(p.camera))),
            mirror=p.mirror if mirror else None,
            center=Vec.of(p.position.transpose(0, 1)),
            bound=torch.where(p.shape < 0, -torch.inf, bound).T.contiguous(),
            position=Vec.of(p.position.flatten(0, 1)),
            extent=p.half_extent.flatten(),
            cosine=p.heading[..., 0].flatten(),
            sine=p.heading[..., 1].flatten(),
            shape=p.shape.flatten(),
            metal=p.material.flatten() == 1,
            color=Vec.of(table[p.color.flatten()]),
        )

    def to_local(self, objects: Tensor, v: Vec, *, point: bool) -> Vec:
        """Points or directions ``[P, W]`` in the frames of the flat objects ``[P]``."""
        inverse = 1 / self.extent[objects][:, None]
        c = self.cosine[objects][:, None] * inverse
        s = self.sine[objects][:, None] * inverse
        if point:
            v = v - self.position.map(lambda t: t[objects][:, None])
        return Vec(v.x * c + v.y * s, v.y * c - v.x * s, v.z * inverse)

    def flat(self, scene: Tensor, obj: Tensor) -> Tensor:
        """Flat numbers of objects in scenes."""
        return scene * len(self.bound) + obj


def first_hits(scenes: Scenes, rays: Rays) -> Hits:
    """The nearest of floor, backdrop, mirror and objects along each ray."""
    nearest = _ground_distance(rays)
    item = torch.full_like(nearest, BACKGROUND, dtype=torch.int8)
    if scenes.mirror is not None:
        distance = _mirror_distance(scenes.mirror[rays.scene], rays)
        item.masked_fill_(distance < nearest, MIRROR)
        nearest = torch.minimum(nearest, distance)
    tile, obj = _candidates(scenes, rays)
    flat = scenes.flat(rays.scene[tile], obj)
    found = []
    for shape in range(len(BOUNDING_RADIUS)):
        pairs = (scenes.shape[flat] == shape).nonzero()[:, 0]
        rows, ids = tile[pairs], flat[pairs]
        origin = scenes.to_local(ids, rays.origin.rows(rows), point=True)
        direction = scenes.to_local(ids, rays.direction.rows(rows), point=False)
        distance = intersect(shape, origin, direction)
        found.append((rows, obj[pairs].to(torch.int8), distance))
        nearest = row_min(nearest, rows, distance)
    for rows, numbers, distance in found:
        pair, ray = (distance == nearest.index_select(0, rows)).nonzero(as_tuple=True)
        item[rows[pair], ray] = numbers[pair]
    if rays.active is not None:
        item.masked_fill_(~rays.active, BACKGROUND)
    return Hits(nearest, item)


def row_min(values: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """``values[rows] = min(values[rows], others)``, where rows may repeat."""
    return values.scatter_reduce(0, rows[:, None].expand_as(others), others, "amin")


def bounds(v: Vec, active: Tensor | None) -> tuple[Vec, Tensor]:
    """Middle and half diagonal, ``[T]``, of the box around each tile's active vectors."""
    if v.x.shape[1] == 1:
        return v.map(lambda t: t[:, 0]), torch.zeros_like(v.x[:, 0])
    if active is None:
        low, high = v.map(lambda t: t.amin(1)), v.map(lambda t: t.amax(1))
    else:
        low = v.map(lambda t: torch.where(active, t, torch.inf).amin(1))
        high = v.map(lambda t: torch.where(active, t, -torch.inf).amax(1))
    size = high - low
    return (low + high) * 0.5, 0.5 * size.dot(size).sqrt()


def _candidates(scenes: Scenes, rays: Rays) -> tuple[Tensor, Tensor]:
    """Tiles and objects that may meet: each ray stays in its tile's cone around the middle ray."""
    origin, width = bounds(rays.origin, rays.active)
    axis, spread = bounds(rays.direction, rays.active)
    to_object = scenes.center.map(lambda t: t.index_select(1, rays.scene)) - origin
    along = (to_object.dot(axis) / axis.dot(axis).clamp_min(1e-12)).clamp_min(0)
    miss = to_object - axis * along
    bound = scenes.bound.index_select(1, rays.scene) + width
    reach = bound + spread * (to_object.dot(to_object).sqrt() + bound)
    # The slack is for rounding: a test that is exact for W = 1 must not depend on it.
    meets = (miss.dot(miss) <= reach * reach * 1.001 + 1e-4) & (reach > 0)
    obj, tile = meets.nonzero(as_tuple=True)
    return tile, obj


def _ground_distance(rays: Rays) -> Tensor:
    """Distance to the floor or, past the start of the sweep, to the quarter circle or the wall."""
    o, d = rays.origin, rays.direction
    distance = torch.where(d.z < -1e-6, -o.z / d.z, FAR).clamp_max(FAR)
    du = d.x * SWEEP[0] + d.y * SWEEP[1]
    ou = o.x * SWEEP[0] + o.y * SWEEP[1]
    beyond = ou + distance * du > SWEEP_START
    tiles = beyond.any(1).nonzero()[:, 0]
    ou, oz, du, dz = ou[tiles] - SWEEP_START, o.z[tiles] - SWEEP_RADIUS, du[tiles], d.z[tiles]
    a = du * du + dz * dz
    b = ou * du + oz * dz
    c = ou * ou + oz * oz - SWEEP_RADIUS**2
    curve = (-b + (b * b - a * c).clamp_min(0).sqrt()) / a
    wall = (SWEEP_RADIUS - ou) / du
    far = torch.where(oz + curve * dz > 0, wall, curve).clamp_max(FAR)
    distance[tiles] = torch.where(beyond[tiles], far, distance[tiles])
    return distance


def _mirror_distance(mirror: Tensor, rays: Rays) -> Tensor:
    """Distance to the front of the mirror, inf where a ray misses it."""
    foot_x, foot_y, nx, ny = mirror[:, :, None].unbind(1)
    o, d = rays.origin, rays.direction
    approach = d.x * nx + d.y * ny
    ox, oy = foot_x - o.x, foot_y - o.y
    distance = (ox * nx + oy * ny) / approach
    across = (distance * d.x - ox) * ny - (distance * d.y - oy) * nx
    height = o.z + distance * d.z
    hit = (approach < -1e-6) & (distance > 1e-4) & (across.abs() < MIRROR_HALF_WIDTH)
    return torch.where(hit & (height < MIRROR_HEIGHT), distance, torch.inf)
