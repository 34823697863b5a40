"""What the surfaces of CLEVR-like scenes look like where rays end.

Soft shadows need no random samples: an object hides the part of a light that its outline, seen from the
lit point, covers.

Source:
    CLEVR's base scene and materials; Walter et al. 2007 (GGX) for the highlights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastslots.data.scenes.hits import (
    FAR,
    LIGHTS,
    MIRROR,
    MIRROR_HALF_WIDTH,
    MIRROR_HEIGHT,
    SWEEP,
    SWEEP_RADIUS,
    SWEEP_START,
    Hits,
    Rays,
    Scenes,
    bounds,
    row_min,
)
from fastslots.data.scenes.shapes import BOUNDING_RADIUS, Vec, normal, silhouette_distance

MIRROR_TINT = 0.88
FLOOR_RADIANCE = 0.17
_ABOVE_RADIANCE = 0.03  # what little the backdrop sends down
_FLOOR_ALBEDO = 0.8  # Cycles' default material
_FLOOR_END = 13.0  # CLEVR's floor ends behind the camera and far to the sides
_MIRROR_FRAME_ALBEDO, _MIRROR_FRAME_WIDTH = 0.06, 0.09
_RUBBER_GLOSS, _RUBBER_ROUGHNESS = 0.02, 0.35
_METAL_GLOSS, _METAL_ROUGHNESS = 0.4, 0.2
_METAL_SHARP = 0.6


@dataclass(frozen=True)
class Surface:
    """Where rays end.

    Attributes:
        point: ``[T, W]``.
        normal: ``[T, W]``.
        albedo: Diffuse colour, ``[T, W]``; 0 on metal and glass.
        glass: Where the mirror reflects, ``[T, W]`` bool; None without a mirror.
        on_object: The ``H`` rays that end on objects, as numbers into ``T * W``.
        objects: Their flat objects, ``[H]``.
        metal: Whether those are metal, ``[H]`` bool.
        color: Their colour, ``[H]``.
    """

    point: Vec
    normal: Vec
    albedo: Vec
    glass: Tensor | None
    on_object: Tensor
    objects: Tensor
    metal: Tensor
    color: Vec


def surface_at(scenes: Scenes, rays: Rays, hits: Hits) -> Surface:
    """Looks the surface up at each ray's end."""
    point = rays.origin + rays.direction * hits.distance
    normals = _ground_normal(point)
    ground = torch.where(hits.distance < FAR, _ground_albedo(point), 0.0)
    glass = None
    if scenes.mirror is not None:
        glass = _mirror_surface(scenes.mirror[rays.scene], hits, point, normals, ground)
    albedo = Vec(ground, ground.clone(), ground.clone())

    on_object = (hits.item >= 0).view(-1).nonzero()[:, 0]
    scene = rays.scene[on_object // hits.item.shape[1]]
    objects = scenes.flat(scene, hits.item.view(-1)[on_object])
    local = scenes.to_local(objects, at(point, on_object).map(lambda t: t[:, None]), point=True)
    n = normal(scenes.shape[objects], local.map(lambda t: t[:, 0]))
    c, s = scenes.cosine[objects], scenes.sine[objects]
    put(normals, on_object, Vec(n.x * c - n.y * s, n.x * s + n.y * c, n.z))
    metal = scenes.metal[objects]
    color = at(scenes.color, objects)
    put(albedo, on_object, color.map(lambda t: t.masked_fill(metal, 0)))
    return Surface(point, normals, albedo, glass, on_object, objects, metal, color)


def at(v: Vec, rays: Tensor) -> Vec:
    """The vectors of single rays, by their numbers into ``T * W``."""
    return v.map(lambda t: t.view(-1).index_select(0, rays))


def put(target: Vec, rays: Tensor, value: Vec) -> None:
    """Writes the vectors of single rays."""
    for t, v in zip(target, value, strict=True):
        t.view(-1)[rays] = v


def _ground_normal(point: Vec) -> Vec:
    """Straight up on the floor, towards the axis of the quarter circle on the sweep."""
    along = point.x * SWEEP[0] + point.y * SWEEP[1] - SWEEP_START
    lean = (along / SWEEP_RADIUS).clamp(0, 1)
    return Vec(lean * -SWEEP[0], lean * -SWEEP[1], (1 - lean * lean).sqrt())


def _ground_albedo(point: Vec) -> Tensor:
    front = (point.x * SWEEP[0] + point.y * SWEEP[1]).clamp_max(0)
    side = point.x * SWEEP[1] - point.y * SWEEP[0]
    away = (front * front + 0.3 * side * side) / _FLOOR_END**2
    return _FLOOR_ALBEDO / (1 + away * away)


def _mirror_surface(mirror: Tensor, hits: Hits, point: Vec, normals: Vec, albedo: Tensor) -> Tensor:
    """Writes the mirror's normals and albedo, and says where its glass is."""
    glass = hits.item == MIRROR
    tiles = glass.any(1).nonzero()[:, 0]
    on_mirror = glass[tiles]
    foot_x, foot_y, nx, ny = mirror[tiles][:, :, None].unbind(1)
    x, y, z = point.rows(tiles)
    across = ((x - foot_x) * ny - (y - foot_y) * nx).abs()
    inside = (across < MIRROR_HALF_WIDTH - _MIRROR_FRAME_WIDTH) & (z > _MIRROR_FRAME_WIDTH)
    inside &= z < MIRROR_HEIGHT - _MIRROR_FRAME_WIDTH
    for target, value in zip(normals, (nx, ny, torch.zeros_like(nx)), strict=True):
        target[tiles] = torch.where(on_mirror, value, target[tiles])
    own = torch.where(inside, 0.0, _MIRROR_FRAME_ALBEDO)
    albedo[tiles] = torch.where(on_mirror, own, albedo[tiles])
    glass[tiles] = on_mirror & inside
    return glass


def shade(scenes: Scenes, rays: Rays, hits: Hits, surface: Surface) -> Vec:
    """Linear radiance that the surfaces send back of the lights, ``[T, W]``: diffuse and highlights."""
    visible = _visibility(scenes, rays, surface.point, hits.item)
    ambient = (1 - surface.normal.z) * (0.5 * (FLOOR_RADIANCE - _ABOVE_RADIANCE)) + _ABOVE_RADIANCE
    total = Vec(ambient, ambient.clone(), ambient.clone())
    for light, everywhere, lit in zip(LIGHTS, scenes.lights, visible, strict=True):
        position = everywhere.map(lambda t: t[rays.scene][:, None])
        to_light = position - surface.point
        inverse = 1 / to_light.dot(to_light)
        facing = to_light.dot(surface.normal).clamp_min_(0)
        emission = to_light.dot(position.unit()).clamp_min_(0)
        received = facing.mul_(emission).mul_(inverse.mul_(inverse)).mul_(lit)
        for channel, strength in zip(total, light.color, strict=True):
            channel += received * (strength * light.power / math.pi)
    color = Vec(*(a * t for a, t in zip(surface.albedo, total, strict=True)))
    _add_highlights(color, scenes, rays, surface, visible)
    return color


def _add_highlights(
    color: Vec, scenes: Scenes, rays: Rays, surface: Surface, visible: Tensor
) -> None:
    """The lights' reflections in objects: a rough lobe, and on metal a sharp image of the lamp."""
    rows = surface.on_object
    tile = rows // surface.point.x.shape[1]
    scene = rays.scene[tile]
    point, n, direction = (at(v, rows) for v in (surface.point, surface.normal, rays.direction))
    metal = surface.metal
    gloss = surface.color.map(lambda t: torch.where(metal, _METAL_GLOSS * t, _RUBBER_GLOSS))
    sharp = surface.color.map(lambda t: torch.where(metal, _METAL_SHARP * t, 0.0))
    roughness = torch.where(metal, _METAL_ROUGHNESS, _RUBBER_ROUGHNESS)
    alpha2 = roughness * roughness
    mirrored = direction.reflect(n)
    scale = alpha2 / (-direction.dot(n)).clamp_min(0.1)
    total = at(color, rows)
    for light, everywhere, lit in zip(LIGHTS, scenes.lights, visible, strict=True):
        position = at(everywhere, scene)
        to_light = position - point
        squared = to_light.dot(to_light)
        inverse = 1 / squared
        unit = to_light * inverse.sqrt()
        emission = unit.dot(position.unit()).clamp_min(0) * lit.view(-1)[rows] * (unit.dot(n) > 0)
        half = (unit - direction).unit().dot(n)
        lobe = half * half * (alpha2 - 1) + 1
        rough = scale * inverse / (lobe * lobe) * (light.power / (4 * math.pi))
        along = to_light.dot(mirrored).clamp_min(0)
        in_lamp = squared - along * along < light.radius**2
        image = in_lamp * (light.power / (math.pi * light.radius**2))
        for t, g, s, k in zip(total, gloss, sharp, light.color, strict=True):
            t += (g * rough + s * image) * (emission * k)
    put(color, rows, total)


def _visibility(scenes: Scenes, rays: Rays, point: Vec, item: Tensor) -> Tensor:
    """The part of each light that each point sees past the objects, ``[4, T, W]``, 0 to 1."""
    T, W = item.shape
    active = item != MIRROR if rays.active is None else rays.active & (item != MIRROR)
    middle, width = bounds(point, active)
    light, tile, obj = _shadow_candidates(scenes, rays, middle, width)
    flat = scenes.flat(rays.scene[tile], obj)
    lit = point.x.new_ones(len(LIGHTS) * T, W)
    for shape in range(len(BOUNDING_RADIUS)):
        chosen = (scenes.shape[flat] == shape).nonzero()[:, 0]
        if W > 1:
            where = _Shadow.at(
                shape,
                scenes,
                rays,
                light[chosen],
                tile[chosen],
                flat[chosen],
                middle.map(lambda t: t[:, None]),
            )
            slack = (1.2 * width[tile[chosen]] / scenes.extent[flat[chosen]])[:, None]
            chosen = chosen[(where.gap <= where.penumbra + slack)[:, 0]]
        lights, tiles, objects = light[chosen], tile[chosen], flat[chosen]
        shadow = _Shadow.at(shape, scenes, rays, lights, tiles, objects, point)
        itself = item.index_select(0, tiles) == obj[chosen].to(torch.int8)[:, None]
        lit = row_min(lit, lights * T + tiles, shadow.unhidden().masked_fill_(itself, 1))
    return lit.view(len(LIGHTS), T, W)


def _shadow_candidates(
    scenes: Scenes, rays: Rays, middle: Vec, width: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Lights, tiles and objects such that the object's bounding sphere may shade the tile."""
    center = scenes.center.map(lambda t: t.index_select(1, rays.scene))
    bound = scenes.bound.index_select(1, rays.scene) + width
    from_middle = center - middle
    distance2 = from_middle.dot(from_middle)
    found = []
    for i, light in enumerate(LIGHTS):
        to_light = scenes.lights[i].map(lambda t: t[rays.scene]) - middle
        distance = to_light.dot(to_light).sqrt()
        along = from_middle.dot(to_light * (1 / distance))
        tangent = 2 * light.radius / (distance - width).clamp_min(1)
        reach = bound * 1.05 + tangent * (along + bound).clamp_min(0)
        meets = (distance2 - along * along <= reach * reach) & (along > -bound) & (reach > 0)
        obj, tile = meets.nonzero(as_tuple=True)
        found.append((torch.full_like(tile, i), tile, obj))
    light_number, tile, obj = (torch.cat(x) for x in zip(*found, strict=True))
    return light_number, tile, obj


@dataclass(frozen=True)
class _Shadow:
    """How lines from points to a light pass objects, ``[P, W]``, in the objects' extents."""

    gap: Tensor  # to the outline, negative inside
    ahead: Tensor  # how far along the line the object is
    penumbra: Tensor  # half width of the blurred edge there

    @staticmethod
    def at(
        shape: int, scenes: Scenes, rays: Rays,
        light: Tensor, tile: Tensor, objects: Tensor, point: Vec,
    ) -> _Shadow:  # fmt: skip
        """For ``P`` triples of light, tile and flat object of one shape; ``point`` is ``[T, W]``."""
        scene = rays.scene[tile]
        positions = (torch.stack(c) for c in zip(*scenes.lights, strict=True))
        position = Vec(*(t[light, scene][:, None] for t in positions))
        radius = point.x.new_tensor([x.radius for x in LIGHTS])[light][:, None]
        here = point.rows(tile)
        to_light = position - here
        inverse = 1 / to_light.dot(to_light).sqrt()
        # Times extent: in the object's frame lengths are in extents, and this one is to stay 1.
        scaled = to_light * (inverse * scenes.extent[objects][:, None])
        direction = scenes.to_local(objects, scaled, point=False)
        local = scenes.to_local(objects, here, point=True)
        ahead = -local.dot(direction)
        penumbra = (radius * inverse * ahead).clamp_min(1e-3)
        return _Shadow(silhouette_distance(shape, local, direction), ahead, penumbra)

    def unhidden(self) -> Tensor:
        """The part of the light that the object leaves, ``[P, W]``."""
        share = (0.5 * self.gap / self.penumbra + 0.5).clamp_(0, 1)
        share = share * share * (3 - 2 * share)
        return share.masked_fill_(self.ahead <= 0, 1)
