"""A small Whitted ray tracer for CLEVR-like scenes, vectorised over images, tiles and rays.

Source:
    Whitted 1980 for the recursion; hits.py and shading.py for the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastslots.data.scenes.hits import Rays, Scenes, first_hits
from fastslots.data.scenes.sampling import TAN_HALF_VIEW, SceneParameters
from fastslots.data.scenes.shading import (
    FLOOR_RADIANCE,
    MIRROR_TINT,
    Surface,
    at,
    shade,
    surface_at,
)
from fastslots.data.scenes.shapes import Vec

RENDERER_VERSION = 1  # to be raised when an image changes by a bit: caches are named after it
TILE = 4  # pixels
BOUNCES = 2
_LIFT = 1e-3  # how far a reflected ray starts off its surface


@torch.no_grad()
def render(parameters: SceneParameters, *, image_size: int, samples: int, mirror: bool) -> Tensor:
    """Renders images; an image's bits do not depend on its batch, nor on the number of threads.

    Args:
        parameters: ``B`` scenes, on the device to render on.
        image_size: ``S``.
        samples: Rays a pixel, a square number: one through the middle of each cell of a grid.
        mirror: Whether the mirror stands in the scenes.

    Returns:
        ``[B, 3, S, S]`` float32 in [0, 1], sRGB.
    """
    scenes = Scenes.of(parameters, mirror=mirror)
    rays = _camera_rays(scenes, image_size, math.isqrt(samples))
    color = _radiance(scenes, rays).map(_to_srgb)
    return torch.stack([_to_image(_mean_of_samples(c, samples), image_size) for c in color], 1)


@torch.no_grad()
def render_masks(parameters: SceneParameters, *, image_size: int, mirror: bool) -> Tensor:
    """Which object the ray through each pixel's centre meets first.

    Returns:
        ``[B, S, S]`` uint8: 0 for floor, backdrop and mirror, else the object's number + 1.
    """
    scenes = Scenes.of(parameters, mirror=mirror)
    hits = first_hits(scenes, _camera_rays(scenes, image_size, 1))
    return _to_image((hits.item.clamp_min(-1) + 1).to(torch.uint8), image_size)


def _camera_rays(scenes: Scenes, S: int, side: int) -> Rays:
    """Rays through ``side`` x ``side`` cells of each pixel, in tiles: ``[B * tiles², 16 * side²]``."""
    device = scenes.camera.x.device
    tiles = math.ceil(S / TILE)
    steps = torch.arange(tiles * TILE * side, device=device)
    steps = (((steps + 0.5) / side) * (2 / S) - 1) * TAN_HALF_VIEW
    grid = (tiles, tiles, TILE, TILE, side, side)
    x = steps.view(1, tiles, 1, TILE, 1, side).expand(grid).reshape(1, tiles**2, -1)
    y = -steps.view(tiles, 1, TILE, 1, side, 1).expand(grid).reshape(1, tiles**2, -1)
    right, up, forward = (axis.map(lambda t: t.view(-1, 1, 1)) for axis in scenes.axes)
    direction = (right * x + up * y + forward).unit().map(lambda t: t.flatten(0, 1))
    scene = torch.arange(len(scenes.camera.x), device=device).repeat_interleave(tiles**2)
    return Rays(scene, scenes.camera.map(lambda t: t[scene][:, None]), direction)


@dataclass(frozen=True)
class _Wave:
    """Rays on their way: the numbers of the camera rays that they continue, and their weights."""

    rays: Rays
    target: Tensor  # [T, W] int64
    weight: Vec  # [T, W]


def _radiance(scenes: Scenes, rays: Rays) -> Vec:
    """Linear colour that comes back along each camera ray, ``[T, W]``."""
    ones = torch.ones_like(rays.direction.x)
    numbers = torch.arange(ones.numel(), device=ones.device).view(ones.shape)
    total = rays.direction.map(torch.zeros_like)
    waves = [_Wave(rays, numbers, Vec(ones, ones, ones))]
    for _ in range(BOUNCES + 1):
        reflected = []
        for wave in waves:
            hits = first_hits(scenes, wave.rays)
            surface = surface_at(scenes, wave.rays, hits)
            _add(total, wave, shade(scenes, wave.rays, hits, surface))
            reflected.append(_off_metal(wave, surface))
            if surface.glass is not None:
                reflected.append(_off_glass(wave, surface, surface.glass))
        waves = _join(reflected)
    for wave in waves:
        _add(total, wave, wave.weight.map(lambda t: torch.full_like(t, FLOOR_RADIANCE)))
    return total


def _add(total: Vec, wave: _Wave, color: Vec) -> None:
    for t, c, w in zip(total, color, wave.weight, strict=True):
        t.view(-1)[wave.target] += c * w


def _off_metal(wave: _Wave, surface: Surface) -> _Wave:
    """What metal reflects. Its curved faces scatter the rays of a tile: each becomes a tile."""
    metal = surface.metal.nonzero()[:, 0]
    single = surface.on_object[metal]
    n = at(surface.normal, single)
    origin = at(surface.point, single) + n * _LIFT
    direction = at(wave.rays.direction, single).reflect(n)
    scene = wave.rays.scene[single // surface.point.x.shape[1]]
    weight = at(wave.weight, single) * at(surface.color, metal)
    origin, direction, weight = (v.map(lambda t: t[:, None]) for v in (origin, direction, weight))
    return _Wave(Rays(scene, origin, direction), wave.target.view(-1)[single][:, None], weight)


def _off_glass(wave: _Wave, surface: Surface, glass: Tensor) -> _Wave:
    """What the mirror reflects. It is flat: rays stay in their tiles."""
    tiles = glass.any(1).nonzero()[:, 0]
    active = glass[tiles]
    n = surface.normal.rows(tiles)
    origin = surface.point.rows(tiles) + n * _LIFT
    direction = wave.rays.direction.rows(tiles).reflect(n)
    weight = wave.weight.rows(tiles).map(lambda t: torch.where(active, t * MIRROR_TINT, 0))
    rays = Rays(wave.rays.scene[tiles], origin, direction, active)
    return _Wave(rays, wave.target[tiles], weight)


def _join(waves: list[_Wave]) -> list[_Wave]:
    """One wave for each tile width: single rays all go on together."""
    joined = []
    for width in sorted({wave.target.shape[1] for wave in waves if len(wave.target)}):
        alike = [wave for wave in waves if wave.target.shape[1] == width]
        active = None
        if width > 1:
            active = torch.cat([w.rays.active for w in alike if w.rays.active is not None])
        rays = Rays(
            torch.cat([w.rays.scene for w in alike]),
            _cat([w.rays.origin for w in alike]),
            _cat([w.rays.direction for w in alike]),
            active,
        )
        weight = _cat([w.weight for w in alike])
        joined.append(_Wave(rays, torch.cat([w.target for w in alike]), weight))
    return joined


def _cat(vectors: list[Vec]) -> Vec:
    return Vec(*(torch.cat(c) for c in zip(*vectors, strict=True)))


def _to_srgb(linear: Tensor) -> Tensor:
    """The sRGB curve to 0.002 by square roots, which round alike everywhere; powers do not."""
    x = linear.clamp(0, 1)
    root2 = x.sqrt()
    root4 = root2.sqrt()
    curve = 0.585122381 * root2 + 0.783140355 * root4 - 0.368262736 * root4.sqrt()
    return torch.where(x < 0.0031308, 12.92 * x, curve).clamp(0, 1)


def _mean_of_samples(x: Tensor, samples: int) -> Tensor:
    """``[T, 16 * samples]`` to ``[T, 16]``, in a fixed order of additions."""
    x = x.view(len(x), TILE * TILE, samples)
    total = x[..., 0]
    for i in range(1, samples):
        total = total + x[..., i]
    return total / samples


def _to_image(x: Tensor, S: int) -> Tensor:
    """Tiles ``[B * tiles², 16]`` to ``[B, S, S]``."""
    tiles = math.ceil(S / TILE)
    x = x.view(-1, tiles, tiles, TILE, TILE).transpose(2, 3)
    return x.reshape(-1, tiles * TILE, tiles * TILE)[:, :S, :S]
