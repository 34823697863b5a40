"""CLEVR-like scenes with a mirror, rendered when they are asked for: a dataset that needs no files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastslots.data.scenes.cache import SceneCache
from fastslots.data.scenes.sampling import (
    COLORS,
    MATERIALS,
    SIZES,
    SceneParameters,
    pixel_coordinates,
    sample_scenes,
)
from fastslots.data.scenes.shapes import SHAPES
from fastslots.data.scenes.tracer import RENDERER_VERSION, render, render_masks
from fastslots.settings import check_fields
from fastslots_kernels.checks import check_choice, check_count

SPLITS = ("train", "val", "test")
MAX_OBJECTS = 10
_SPLIT_SIZE = 2**40
_RAYS_PER_CHUNK = {"cpu": 2**18, "cuda": 2**23}


@dataclass(frozen=True)
class SceneObjects:
    """What stands in ``B`` scenes, padded to ``M`` objects with -1 (classes) and 0 (the rest).

    Attributes:
        count: Number of objects, ``[B]`` int64.
        shape: Index into ``SHAPES``, ``[B, M]`` int64.
        size: Index into ``SIZES``, ``[B, M]`` int64.
        material: Index into ``MATERIALS``, ``[B, M]`` int64.
        color: Index into ``list(COLORS)``, ``[B, M]`` int64.
        position: Centre in CLEVR's world coordinates, ``[B, M, 3]`` float32.
        rotation: About the vertical axis in degrees, ``[B, M]`` float32.
        pixel_coordinates: Centre in the image: x and y in pixels from the top left corner, and depth
            along the viewing direction in world units, ``[B, M, 3]`` float32.
    """

    count: Tensor
    shape: Tensor
    size: Tensor
    material: Tensor
    color: Tensor
    position: Tensor
    rotation: Tensor
    pixel_coordinates: Tensor

    def clevr(self, scene: int) -> list[dict[str, Any]]:
        """The objects of one scene, as the list ``objects`` of CLEVR's scene JSON."""
        number = int(self.count[scene])
        names = (SHAPES, SIZES, MATERIALS, tuple(COLORS))
        classes = (self.shape, self.size, self.material, self.color)
        reals = (self.position, self.rotation, self.pixel_coordinates)
        columns = [[n[c] for c in t[scene, :number]] for n, t in zip(names, classes, strict=True)]
        columns += [t[scene, :number].tolist() for t in reals]
        keys = ("shape", "size", "material", "color", "3d_coords", "rotation", "pixel_coords")
        return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class SceneBatch:
    """Rendered scenes.

    Attributes:
        images: ``[B, 3, S, S]`` float32 in [0, 1], multiples of 1/255, sRGB.
        masks: The object that the ray through a pixel's centre meets first, ``[B, S, S]`` uint8:
            0 for floor, backdrop and mirror (and what it reflects), else its number + 1.
        objects: What stands in the scenes.
    """

    images: Tensor
    masks: Tensor
    objects: SceneObjects


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Scenes are float32 whatever PyTorch's default is; that of other threads changes meanwhile too."""
    before = torch.get_default_dtype()
    if before == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class _Settings:
    """Everything that an image of a given index depends on."""

    seed: int
    image_size: int
    samples: int
    min_objects: int
    max_objects: int
    mirror: bool

    def __post_init__(self) -> None:
        check_fields(self, may_be_zero=("seed",))
        if math.isqrt(self.samples) ** 2 != self.samples:
            raise ValueError(f"samples must be a square number; got {self.samples}")
        if not 1 <= self.min_objects <= self.max_objects <= MAX_OBJECTS:
            raise ValueError(
                f"1 <= min_objects <= max_objects <= {MAX_OBJECTS} must hold; "
                f"got {self.min_objects} and {self.max_objects}"
            )

    @_float32_by_default()
    def sample(self, indices: Tensor) -> SceneParameters:
        """Scene parameters, on the CPU whatever renders them."""
        return sample_scenes(
            indices, seed=self.seed, min_objects=self.min_objects, max_objects=self.max_objects
        )

    @_float32_by_default()
    def render(self, p: SceneParameters, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images ``[B, 3, S, S]`` and masks ``[B, S, S]``, uint8 on the device."""
        S, p = self.image_size, p.to(device)
        chunk = max(1, _RAYS_PER_CHUNK[device.type] // (S * S * self.samples))
        images, masks = p.camera.new_empty(0, 3, S, S).byte(), p.camera.new_empty(0, S, S).byte()
        for start in range(0, len(p.count), chunk):
            part = p[start : start + chunk]
            image = render(part, image_size=S, samples=self.samples, mirror=self.mirror)
            images = torch.cat((images, (image * 255).round().byte()))
            mask = render_masks(part, image_size=S, mirror=self.mirror)
            masks = torch.cat((masks, mask))
        return images, masks

    @_float32_by_default()
    def objects(self, p: SceneParameters, device: torch.device) -> SceneObjects:
        """The public part of the parameters."""
        pixels = pixel_coordinates(p, self.image_size)
        tensors = (
            p.count, p.shape, p.size, p.material, p.color, p.position, p.rotation, pixels
        )  # fmt: skip
        return SceneObjects(*(t.to(device) for t in tensors))


def render_scenes(
    indices: Sequence[int] | Tensor,
    *,
    seed: int = 0,
    image_size: int = 64,
    samples: int = 4,
    min_objects: int = 3,
    max_objects: int = 6,
    mirror: bool = True,
    device: torch.device | str | None = None,
) -> SceneBatch:
    """Renders the scenes of the given indices.

    A scene depends on ``seed``, its index and the numbers of objects alone, not on the rest of the
    batch, the process or any global random state. On the CPU its image is the same bits each time.

    Args:
        indices: ``B`` integers from 0.
        seed: Chooses the sequence of scenes.
        image_size: ``S``, in pixels.
        samples: Rays a pixel for anti-aliasing: a square number.
        min_objects: The number of objects is uniform from this one
        max_objects: to this one, which is at most 10 and is also the padded size ``M``.
        mirror: Whether a mirror stands behind the objects.
        device: Where to render, and where the result lies. Default: the CPU.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.
    """
    settings = _Settings(seed, image_size, samples, min_objects, max_objects, mirror)
    where = _as_device(device)
    numbers = _as_indices(indices)
    parameters = settings.sample(numbers)
    images, masks = settings.render(parameters, where)
    return SceneBatch(images.float() / 255, masks, settings.objects(parameters, where))


def _as_device(device: torch.device | str | None) -> torch.device:
    where = torch.device("cpu" if device is None else device)
    if where.type not in _RAYS_PER_CHUNK:
        raise ValueError(f"device must be one of {list(_RAYS_PER_CHUNK)}; got {str(where)!r}")
    return where


def _as_indices(indices: Sequence[int] | Tensor) -> Tensor:
    numbers = torch.as_tensor(indices, device="cpu")
    if not numbers.numel():
        return torch.zeros(0, dtype=torch.int64)
    if numbers.ndim != 1 or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise TypeError(f"indices must be a list of integers; got {indices!r}")
    if numbers.min() < 0:
        raise ValueError(f"indices must not be negative; got {int(numbers.min())}")
    return numbers.long()


class Scenes(Dataset[Tensor]):
    """The scenes of one split as a dataset of images, ``[3, S, S]`` float32 in [0, 1].

    A ``DataLoader`` fetches a whole batch by ``__getitems__``, which renders it at once. The splits of
    one seed are disjoint ranges of its sequence of scenes.

    Args:
        num_scenes: Length of the dataset.
        split: ``"train"``, ``"val"`` or ``"test"``.
        seed: As for ``render_scenes``, like the next five.
        image_size: ``S``, in pixels.
        samples: Rays a pixel.
        min_objects: Fewest objects of a scene.
        max_objects: Most objects of a scene.
        mirror: Whether a mirror stands behind the objects.
        cache: A folder, made if missing, that keeps what was rendered (4 S² + 4 bytes a scene).
            Several processes and datasets may share it.
        device: Where to render. Items lie on the CPU nevertheless if there is a cache.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.
        OSError: If the cache cannot be written.
    """

    def __init__(
        self,
        num_scenes: int,
        *,
        split: str = "train",
        seed: int = 0,
        image_size: int = 64,
        samples: int = 4,
        min_objects: int = 3,
        max_objects: int = 6,
        mirror: bool = True,
        cache: str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        num_scenes = check_count("num_scenes", num_scenes, 1)
        if num_scenes > _SPLIT_SIZE:
            raise ValueError(f"num_scenes must be at most 2**40; got {num_scenes}")
        check_choice("split", split, SPLITS)
        self.num_scenes = num_scenes
        self.split = split
        self.settings = _Settings(seed, image_size, samples, min_objects, max_objects, mirror)
        self.device = _as_device(device)
        self.cache: SceneCache | None = None
        if cache is not None:
            made_with = {f.name: getattr(self.settings, f.name) for f in fields(self.settings)}
            made_with |= {"split": split, "device": self.device.type, "version": RENDERER_VERSION}
            self.cache = SceneCache(cache, made_with, image_size)

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        images, _ = self._rendered(self._checked(indices))
        return list((images.float() / 255).unbind())

    def scene(self, index: int) -> SceneBatch:
        """One scene with its mask and objects, as a batch of one."""
        return self.batch([index])

    def batch(self, indices: Sequence[int]) -> SceneBatch:
        """Scenes with their masks and objects."""
        checked = self._checked(indices)
        images, masks = self._rendered(checked)
        objects = self.settings.objects(self._parameters(checked), images.device)
        return SceneBatch(images.float() / 255, masks, objects)

    def _checked(self, indices: Sequence[int]) -> list[int]:
        checked = [int(i) for i in indices]
        for i in checked:
            if not 0 <= i < self.num_scenes:
                raise IndexError(f"index must be from 0 to {self.num_scenes - 1}; got {i}")
        return checked

    def _parameters(self, indices: list[int]) -> SceneParameters:
        offset = SPLITS.index(self.split) * _SPLIT_SIZE
        return self.settings.sample(torch.tensor(indices, dtype=torch.int64) + offset)

    def _rendered(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        if self.cache is None:
            return self.settings.render(self._parameters(indices), self.device)
        known = self.cache.read(indices)
        missing = sorted(set(indices) - known.keys())
        if missing:
            images, masks = self.settings.render(self._parameters(missing), self.device)
            new = dict(zip(missing, zip(images.cpu(), masks.cpu(), strict=True), strict=True))
            self.cache.write(new)
            known |= new
        images, masks = (torch.stack(t) for t in zip(*(known[i] for i in indices), strict=True))
        return images, masks
